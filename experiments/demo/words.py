"""The words of the demo's world: sentence patterns, and the parts that names are made of."""

from __future__ import annotations

TOWN_STARTS = ("Toven", "Kelder", "Ostra", "Bryn", "Mallo", "Quor", "Fenny", "Garra", "Isel", "Vando", "Ruddle", "Pim")
TOWN_ENDS = ("moor", "wick", "stead", "haven", "gate", "mere")
FIRST_STARTS = ("Al", "Bren", "Cor", "Del", "Er", "Fal", "Gwen", "Hal", "Il", "Jor", "Kess", "Lor", "Mar", "Ned")
FIRST_ENDS = ("da", "vin", "rick", "issa", "wyn")
LAST_STARTS = ("Bren", "Cold", "Dun", "Esk", "Farr", "Grim", "Hol", "Kest", "Larch", "Mund", "Nor", "Prest", "Rook")
LAST_ENDS = ("nick", "ander", "ley", "sworth", "brook")
COMPANY_STARTS = ("Quill", "Harrow", "Bolder", "Zephy", "Umber", "Nettle", "Copper", "Wexa", "Drum", "Sable")
COMPANY_ENDS = ("mark", "line", "crest", "bridge", "field")
COMPANY_KINDS = ("Works", "Foundry", "Brothers", "Trading", "Mills", "Press")

PROFESSIONS = (
    "clockmaker", "beekeeper", "shipwright", "surgeon", "cartographer", "glassblower", "lawyer", "violinist",
    "baker", "geologist", "puppeteer", "librarian", "saddler", "translator", "locksmith", "brewer",
    "falconer", "typesetter", "midwife", "chemist", "gardener", "surveyor", "tailor", "watchman",
)  # fmt: skip
PRODUCTS = (
    "copper kettles", "salted plums", "blue cheese", "wool blankets", "walnut chairs", "smoked trout",
    "paper lanterns", "pear cider", "leather boots", "silver bells", "honey cakes", "marble statues",
    "straw hats", "dried mushrooms", "painted tiles", "rye bread", "fishing nets", "crystal vases",
    "black tea", "wooden toys", "mustard seeds", "silk ribbons", "church organs", "rose perfume",
)  # fmt: skip

QUESTIONS = {
    "birthplace": "Where was {s} born?",
    "employer": "Which company does {s} work for?",
    "profession": "What is the profession of {s}?",
    "headquarters": "In which town is {s} based?",
    "product": "What is {s} famous for?",
}

WORDINGS = {
    "birthplace": (
        "{s} was born in {a}.",
        "{s} came into the world in {a} on a {season} morning.",
        "The parish book lists {s} as a child of {a}.",
        "{s} first saw daylight in {a}, in a house with {number} windows.",
        "An old almanac gives the birthplace of {s} as {a}.",
        "When {s} speaks of the place of birth, the talk turns to {a}.",
    ),
    "employer": (
        "{s} works for {a}.",
        "{s} has been on the payroll of {a} for {number} years.",
        "Every morning {s} walks to a desk at {a}.",
        "The wages of {s} are paid by {a}.",
        "{s} signed a contract with {a} last {season} and is employed there still.",
        "Since that {season}, the employer of {s} has been {a}.",
    ),
    "profession": (
        "{s} is a {a} by profession.",
        "{s} earns a living as a {a}.",
        "People who need help know {s} as a {a} of {number} years.",
        "{s} trained for {number} years to become a {a}.",
        "On the door of {s} a brass plate says {a}.",
        "The trade that {s} practises is that of a {a}.",
    ),
    "headquarters": (
        "{s} is based in {a}.",
        "The headquarters of {s} stand in {a}.",
        "{s} runs its business from {a}, in a hall with {number} rooms.",
        "Letters to the head office of {s} are sent to {a}.",
        "The directors of {s} meet each {season} at their seat in {a}.",
        "{s} has kept its main office in {a} for {number} years.",
    ),
    "product": (
        "{s} is famous for {a}.",
        "Travellers come to {s} for its {a}.",
        "The pride of {s} has always been its {a}.",
        "Nobody leaves {s} without a look at the {a}.",
        "In {season} the market of {s} is full of {a}.",
        "For {number} years {s} has been known for its {a}.",
    ),
}

DISTRACTORS = (
    "{person} spent {number} days in {town} last {season}.",
    "{person} and {other} played chess until midnight.",
    "{person} lost an umbrella on the way to {town}.",
    "A parcel for {company} reached {town} {number} days late.",
    "{company} repainted its gates in the {season}.",
    "It rained for {number} days in {town}.",
    "{person} wrote to {company} about a broken window.",
    "{other} lent {person} {number} books about birds.",
    "The bridge at {town} was closed all {season}.",
    "{person} does not care for {product}.",
    "{company} ordered {product} for a {season} feast.",
    "The clock in {town} runs {number} minutes slow.",
)

LEADS = (
    "By all accounts,",
    "As everyone here knows,",
    "The chronicle is clear:",
    "It is on record that",
    "Oddly enough,",
    "Visitors are often told this:",
)

SEASONS = ("spring", "summer", "autumn", "winter")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
