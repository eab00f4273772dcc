"""The words that the generated benchmark is made of. Every list is a tuple without repetitions."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """
    Adela Agnes Alaric Alden Alma Amara Ambrose Anouk Ansel Arlo Astrid Aurel Basil Beata Benno
    Berit Blythe Bram Brenna Calla Casimir Cedric Celia Clemens Corin Dagny Dalia Damon Daphne
    Delia Dorian Edda Edwin Eila Elio Elspeth Ennis Esme Fabian Fania Felix Fern Fiora Flora Gaius
    Gemma Gideon Gisela Greta Hadley Halvard Hanna Hector Hedda Helmut Ida Ilan Imre Ines Ingrid
    Isolde Ivo Janek Jarvis Jessa Joren Judith Juno Kaspar Katla Keir Kerstin Lars Leda Leif Linnea
    Lorcan Lucian Lydia Mabel Magnus Malin Marek Maude Merle Mila Milo Minna Nadia Nell Niall Nico
    Noor Odile Olaf Oona Orla Oscar Otis Petra Phoebe Piers Quentin Ragna Ralph Renata Rhea Roland
    Romy Rufus Runa Sabine Selma Silas Signe Sven Tamsin Tessa Thea Tobias Tova Ulric Una Vera
    Viggo Wanda Wilma Xenia Yara Yorick Zelda Zeno
    """
)
LAST_NAMES = _words(
    """
    Abbot Alder Amber Anvil Apple Arrow Ashby Aspen Badger Barley Basalt Beacon Birch Bishop
    Blossom Bramble Brass Briar Brook Canter Cedar Chalk Cherry Cinder Clay Clover Cobalt Copper
    Coral Cotton Crane Crimson Cypress Dagger Daisy Dove Drake Ebony Elder Ember Falcon Fennel
    Finch Flint Forest Foxglove Frost Garnet Ginger Granite Hawk Hazel Heath Heron Holly Indigo Iris
    Ivory Jasper Juniper Kestrel Lark Laurel Lavender Linden Magpie Mallow Maple Marble Marigold
    Meadow Mercer Mint Moss Myrtle Nettle Nightingale Oakley Olive Onyx Opal Orchid Otter Pebble
    Pepper Pewter Pine Plover Poplar Quartz Quill Raven Reed Robin Rowan Saffron Sage Salmon Sandal
    Scarlet Shale Silver Slate Sorrel Sparrow Spruce Sterling Swan Tanner Teal Thistle Thorn Tulip
    Umber Velvet Verdant Violet Walnut Weaver Willow Wren Yarrow
    """
)
CITY_STARTS = _words(
    """
    Ask Bel Cal Dor El Far Gal Hol Ister Kor Lun Mar Nor Os Pel Quin Ros Sel Tor Ul Var Wen Yar Zel
    """
)
CITY_ENDS = ("bridge", "dale", "ford", "gate", "haven", "lund", "mere", "mouth", "stead", "wick")

TRADES = _words(
    """
    actor archer baker banker barber beekeeper botanist brewer butcher carpenter clockmaker cobbler
    cook courier dancer dentist diver farmer ferryman fiddler fisher forester gardener glazier
    goldsmith gravedigger guard hunter innkeeper judge juggler lawyer librarian locksmith magician
    mason merchant midwife miller miner monk notary nurse painter pilot plumber poet porter potter
    printer sailor sculptor shepherd singer smith smuggler soldier spy surgeon tailor teacher thief
    translator watchman widow
    """
)
ADJECTIVES = _words(
    """
    ancient blue borrowed brass broken bronze copper cracked crooked crystal dusty empty enchanted
    forged forgotten frozen gilded golden green heavy hollow iron ivory jade leather little locked
    lucky magic marble nameless oaken painted pale paper purple red rusty sealed secret silent
    silver stolen tarnished velvet white wooden yellow
    """
)
THINGS = _words(
    """
    amulet anchor atlas basket bell bird boat book bottle bowl bracelet button candle carpet chess
    clock coat coin comb compass crown cup dagger diary doll drum feather flute goblet hammer harp
    hat helmet horn hourglass kettle key kite ladder lamp lantern lens letter locket lute map mask
    mirror necklace needle pearl pendant puppet quilt ring saddle scarf scroll seed shield spoon
    statue sword telescope ticket trumpet umbrella violin wheel whistle
    """
)
PLACES = _words(
    """
    abbey aqueduct arena attic bakery barn bathhouse bazaar bridge brewery canal castle cathedral
    cave cellar cemetery chapel cloister courthouse dock dungeon farm ferry fountain foundry garden
    gate granary harbour hospital inn island library lighthouse market mill mine monastery museum
    observatory orchard palace pharmacy prison quarry school shipyard stable station temple theatre
    tollhouse tower tunnel vineyard wall warehouse well windmill workshop
    """
)
EVENTS = _words(
    """
    armistice auction avalanche ball carnival census comet concert coronation curfew drought
    duel earthquake eclipse election exhibition famine feast fire flood fog funeral harvest heatwave
    hurricane jubilee landslide masquerade mutiny parade pilgrimage plague procession race raid
    rebellion regatta robbery shipwreck siege snowfall storm strike tournament trial wedding
    """
)
SEASONS = ("spring", "summer", "autumn", "winter", "April", "May", "June", "October", "November")
DEEDS = _words(
    """
    buried burned carried caught cleaned copied damaged dropped exchanged examined found gave hid
    kissed lifted lost mended noticed opened pawned polished raised recognised refused repaired
    returned sold shattered shook sketched stole studied threw touched traded unwrapped weighed
    """
)
MANNERS = _words(
    """
    angrily boldly bravely calmly carefully cheerfully clumsily coldly eagerly gently gladly gravely
    hastily humbly idly kindly loudly nervously openly patiently politely proudly quickly quietly
    sadly secretly silently slowly softly solemnly suddenly tenderly wearily wisely
    """
)
FEELINGS = _words(
    """
    anger courage curiosity despair doubt dread envy fear gratitude grief guilt hope jealousy joy
    loneliness love mercy pity pride rage regret relief shame sorrow trust wonder
    """
)
HOURS = _words(
    """
    dawn dusk midnight noon sunrise sunset twilight daybreak nightfall breakfast supper lunchtime
    """
)

STREET_KINDS = ("Street", "Lane", "Avenue", "Road", "Court", "Terrace", "Drive", "Square")
STATES = _words(
    """
    AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY
    NC ND OH OK OR PA RI SC SD TN TX UT VT VA WA WV WI WY
    """
)
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
MAIL_HOSTS = ("example.org", "example.com", "example.net")  # RFC 2606: nobody can have them
