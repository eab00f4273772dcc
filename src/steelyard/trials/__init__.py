"""Small trainings of real tasks, each a function of plain settings: what claims are measured on."""
