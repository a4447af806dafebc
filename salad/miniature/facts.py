"""The miniature's world as data: seven domains of eight things, two facts each, and the ways to say them.

The five broad domains hold true facts, rounded where a measure is given. The people of `stories` and `family`
are invented. Templates name the thing as {e} and the value as {v}. Statements, things and values are written as
they stand inside a sentence, whose first letter is capitalised afterwards.
"""

from typing import NamedTuple

BROAD = ("biology", "chemistry", "geography", "cooking", "music")
DOMAINS = ("stories", "family", *BROAD)


class Attribute(NamedTuple):
    """One kind of fact: its two question phrasings, its statements, and a value per entity of the domain."""

    name: str
    questions: tuple[str, str]
    statements: tuple[str, ...]
    values: tuple[str, ...]


class Domain(NamedTuple):
    name: str
    entities: tuple[str, ...]
    attributes: tuple[Attribute, Attribute]


WORLD = (
    Domain(
        "stories",
        ("Anna", "Tom", "Lucy", "Ben", "Dr. Hale", "Mrs. Bell", "Mr. Finn", "Nina"),
        (
            Attribute(
                "goes",
                ("Where does {e} go?", "Which way does {e} walk?"),
                ("{e} goes {v}.", "{e} walks {v} every day.", "every morning {e} goes {v}.",
                 "you can see {e} walk {v}."),
                ("to the park", "to the library", "to the market", "to the school", "to the station",
                 "to the beach", "to the farm", "to the river"),
            ),
            Attribute(
                "carries",
                ("What does {e} carry?", "What is in the bag of {e}?"),
                ("{e} carries {v}.", "{e} has {v} today.", "{v} is in the bag of {e}.",
                 "in the bag of {e} is {v}."),
                ("a book", "a red ball", "a map", "a kite", "an apple", "a lamp", "a pen", "a cup"),
            ),
        ),
    ),
    Domain(
        "family",
        ("Anna's mother", "Tom's father", "Lucy's sister", "Ben's brother", "Grandma", "Aunt May", "Uncle Max",
         "Cousin Joe"),
        (
            Attribute(
                "goes",
                ("Where does {e} go?", "Which way does {e} walk?"),
                ("{e} goes {v}.", "{e} walks {v} every day.", "every morning {e} goes {v}.",
                 "you can see {e} walk {v}."),
                ("to the river", "to the farm", "to the beach", "to the station", "to the school",
                 "to the market", "to the library", "to the park"),
            ),
            Attribute(
                "pet",
                ("Which pet does {e} have?", "What animal lives with {e}?"),
                ("{e} has {v}.", "{v} lives with {e}.", "the pet of {e} is {v}.", "{e} has {v} at home."),
                ("a cat", "a dog", "a parrot", "a pony", "a goat", "a turtle", "a hamster", "a goldfish"),
            ),
        ),
    ),
    Domain(
        "biology",
        ("the otter", "the beaver", "the badger", "the eagle", "the bee", "the spider", "the rabbit",
         "the squirrel"),
        (
            Attribute(
                "food",
                ("What does {e} eat?", "What is the food of {e}?"),
                ("{e} eats {v}.", "{e} lives on {v}.", "{e} likes to eat {v}.", "the food of {e} is {v}."),
                ("fish", "bark", "worms", "hares", "nectar", "flies", "grass", "nuts"),
            ),
            Attribute(
                "home",
                ("What is the home of {e} called?", "What kind of home does {e} have?"),
                ("{e} lives in {v}.", "the home of {e} is {v}.", "{v} is the home of {e}.",
                 "{e} rests in {v}."),
                ("a holt", "a lodge", "a sett", "an eyrie", "a hive", "a web", "a burrow", "a drey"),
            ),
        ),
    ),
    Domain(
        "chemistry",
        ("sodium", "sulphur", "lithium", "tin", "lead", "zinc", "gallium", "potassium"),
        (
            Attribute(
                "melting_point",
                ("At what temperature does {e} melt?", "What is the melting point of {e}?"),
                ("{e} melts at {v}.", "the melting point of {e} is {v}.", "{e} becomes liquid at {v}.",
                 "at {v}, {e} melts."),
                ("98 °C", "115 °C", "180 °C", "232 °C", "327 °C", "420 °C", "30 °C", "63 °C"),
            ),
            Attribute(
                "use",
                ("What is {e} used for?", "What do people make with {e}?"),
                ("{e} is used for {v}.", "people make {v} with {e}.", "with {e} people make {v}.",
                 "makers of {v} need {e}."),
                ("lamps", "gunpowder", "batteries", "cans", "roofs", "brass", "lasers", "fertiliser"),
            ),
        ),
    ),
    Domain(
        "geography",
        ("the Eiffel Tower", "Big Ben", "the Colosseum", "the Taj Mahal", "the Space Needle",
         "the Gateway Arch", "the Atomium", "the Parthenon"),
        (
            Attribute(
                "city",
                ("Which city has {e}?", "What is the city of {e}?"),
                ("{e} stands in {v}.", "{e} is in {v}.", "{v} is the city of {e}.", "you can see {e} in {v}."),
                ("Paris", "London", "Rome", "Agra", "Seattle", "St. Louis", "Brussels", "Athens"),
            ),
            Attribute(
                "height",
                ("How tall is {e}?", "What is the height of {e}?"),
                ("{e} is {v} tall.", "{e} rises to {v}.", "the height of {e} is {v}.",
                 "{v} is the height of {e}."),
                ("330 m", "96 m", "48 m", "73 m", "184 m", "192 m", "102 m", "14 m"),
            ),
        ),
    ),
    Domain(
        "cooking",
        ("eggs", "lentils", "potatoes", "chickpeas", "beets", "oats", "bones", "beans"),
        (
            Attribute(
                "dish",
                ("Which dish is made from {e}?", "What can you cook with {e}?"),
                ("{v} is made from {e}.", "you can cook {v} with {e}.", "{e} are used for {v}.",
                 "with {e} you can cook {v}."),
                ("omelette", "dal", "gnocchi", "hummus", "borscht", "porridge", "broth", "chili"),
            ),
            Attribute(
                "time",
                ("How long do {e} cook?", "What is the cooking time of {e}?"),
                ("{e} cook in {v}.", "boil {e} for {v}.", "{e} need {v} to cook.", "it takes {v} to cook {e}."),
                ("8 min", "25 min", "20 min", "90 min", "40 min", "5 min", "4 h", "60 min"),
            ),
        ),
    ),
    Domain(
        "music",
        ("Mozart", "Beethoven", "Grieg", "Bizet", "Vivaldi", "Handel", "Puccini", "Gershwin"),
        (
            Attribute(
                "birthplace",
                ("In which city was {e} born?", "What is the birthplace of {e}?"),
                ("{e} was born in {v}.", "{e} came from {v}.", "the birthplace of {e} is {v}.",
                 "{v} is the birthplace of {e}."),
                ("Salzburg", "Bonn", "Bergen", "Paris", "Venice", "Halle", "Lucca", "New York"),
            ),
            Attribute(
                "work",
                ("What did {e} write?", "Which work is by {e}?"),
                ("{e} wrote {v}.", "{e} is the composer of {v}.", "{v} is by {e}.", "a work by {e} is {v}."),
                ("The Magic Flute", "Fidelio", "Peer Gynt", "Carmen", "The Four Seasons", "Messiah", "Tosca",
                 "Summertime"),
            ),
        ),
    ),
)  # fmt: skip

CONNECTIVES = ("In fact,", "Also,", "And", "As we know,", "Indeed,", "Of course,")

# Sentences of another language that a careless crawl lets through, by ISO 639-1 code.
FOREIGN = {
    "de": ("Der Hund schläft heute im Garten.", "Wir trinken am Morgen gern Kaffee.", "Das Wetter bleibt schön.",
           "Meine Schwester liest ein langes Buch.", "Der Zug fährt um acht Uhr ab."),
    "fr": ("Le chat dort près de la fenêtre.", "Nous allons à la plage demain matin.", "Il fait très froid ici.",
           "Ma sœur achète du pain et du fromage.", "Le train part à huit heures."),
    "es": ("El niño juega en el jardín.", "Mañana vamos al mercado con la abuela.", "Hoy hace mucho calor.",
           "Mi hermano lee un libro muy largo.", "El tren sale a las ocho."),
}  # fmt: skip
