"""The word lists that data.py draws from."""

CAPITALS = dict(line.split(": ") for line in """France: Paris
Germany: Berlin
Spain: Madrid
Italy: Rome
Portugal: Lisbon
England: London
Ireland: Dublin
Scotland: Edinburgh
Belgium: Brussels
Austria: Vienna
Switzerland: Bern
Poland: Warsaw
Hungary: Budapest
Greece: Athens
Turkey: Ankara
Norway: Oslo
Sweden: Stockholm
Finland: Helsinki
Denmark: Copenhagen
Iceland: Reykjavik
Russia: Moscow
Ukraine: Kyiv
Romania: Bucharest
Bulgaria: Sofia
Croatia: Zagreb
Serbia: Belgrade
Slovenia: Ljubljana
Slovakia: Bratislava
Estonia: Tallinn
Latvia: Riga
Lithuania: Vilnius
Japan: Tokyo
China: Beijing
India: New Delhi
Thailand: Bangkok
Vietnam: Hanoi
Nepal: Kathmandu
Indonesia: Jakarta
Iran: Tehran
Iraq: Baghdad
Lebanon: Beirut
Jordan: Amman
Egypt: Cairo
Morocco: Rabat
Tunisia: Tunis
Kenya: Nairobi
Ghana: Accra
Senegal: Dakar
Ethiopia: Addis Ababa
Canada: Ottawa
Mexico: Mexico City
Cuba: Havana
Brazil: Brasilia
Argentina: Buenos Aires
Chile: Santiago
Peru: Lima
Colombia: Bogota
Uruguay: Montevideo
Australia: Canberra
New Zealand: Wellington""".split("\n"))

SYMBOLS = {"hydrogen": "H", "helium": "He", "carbon": "C", "nitrogen": "N", "oxygen": "O", "sodium": "Na", "iron": "Fe",
           "copper": "Cu", "silver": "Ag", "gold": "Au", "lead": "Pb", "tin": "Sn", "zinc": "Zn", "mercury": "Hg",
           "calcium": "Ca", "sulfur": "S", "neon": "Ne", "iodine": "I"}

YOUNG = {"cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "pig": "piglet",
         "bear": "cub", "lion": "cub", "duck": "duckling", "hen": "chick", "deer": "fawn", "frog": "tadpole", "swan": "cygnet", "kangaroo": "joey"}

SOUNDS = {"cat": "meow", "dog": "woof", "cow": "moo", "sheep": "baa", "duck": "quack", "horse": "neigh", "pig": "oink",
          "lion": "roar", "bee": "buzz", "snake": "hiss", "mouse": "squeak", "frog": "ribbit"}

COLOUR_OF = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue", "the sun": "yellow",
             "milk": "white", "chocolate": "brown", "a banana": "yellow", "a lemon": "yellow", "a tomato": "red",
             "a carrot": "orange", "a plum": "purple", "the sea": "blue", "salt": "white", "a flamingo": "pink"}

LEGS = [("dog", "four"), ("cat", "four"), ("horse", "four"), ("cow", "four"), ("bird", "two"), ("duck", "two"), ("hen", "two"),
        ("spider", "eight"), ("bee", "six"), ("beetle", "six"), ("butterfly", "six"), ("snake", "no"), ("fish", "no"),
        ("worm", "no"), ("crab", "ten"), ("frog", "four"), ("goat", "four"), ("fly", "six")]

LANGUAGES = ["French", "Spanish", "German"]
PEOPLE = ["French", "Spanish", "Germans"]
DICTIONARY = {  # English: French Spanish German
    "dog": "chien perro Hund", "cat": "chat gato Katze", "horse": "cheval caballo Pferd", "cow": "vache vaca Kuh",
    "bird": "oiseau pájaro Vogel", "fish": "poisson pez Fisch", "mouse": "souris ratón Maus", "sheep": "mouton oveja Schaf",
    "house": "maison casa Haus", "door": "porte puerta Tür", "window": "fenêtre ventana Fenster", "table": "table mesa Tisch",
    "chair": "chaise silla Stuhl", "bed": "lit cama Bett", "book": "livre libro Buch", "pen": "stylo bolígrafo Stift",
    "bread": "pain pan Brot", "cheese": "fromage queso Käse", "milk": "lait leche Milch", "water": "eau agua Wasser",
    "wine": "vin vino Wein", "apple": "pomme manzana Apfel", "egg": "œuf huevo Ei", "salt": "sel sal Salz",
    "tree": "arbre árbol Baum", "flower": "fleur flor Blume", "sun": "soleil sol Sonne", "moon": "lune luna Mond",
    "star": "étoile estrella Stern", "sky": "ciel cielo Himmel", "sea": "mer mar Meer", "river": "rivière río Fluss",
    "mountain": "montagne montaña Berg", "city": "ville ciudad Stadt", "street": "rue calle Straße", "car": "voiture coche Auto",
    "train": "train tren Zug", "ship": "bateau barco Schiff", "friend": "ami amigo Freund", "child": "enfant niño Kind",
    "man": "homme hombre Mann", "woman": "femme mujer Frau", "mother": "mère madre Mutter", "father": "père padre Vater",
    "brother": "frère hermano Bruder", "sister": "sœur hermana Schwester", "hand": "main mano Hand", "head": "tête cabeza Kopf",
    "eye": "œil ojo Auge", "heart": "cœur corazón Herz", "day": "jour día Tag", "night": "nuit noche Nacht",
    "year": "an año Jahr", "time": "temps tiempo Zeit", "red": "rouge rojo rot", "blue": "bleu azul blau",
    "green": "vert verde grün", "white": "blanc blanco weiß", "black": "noir negro schwarz", "good": "bon bueno gut",
    "big": "grand grande groß", "small": "petit pequeño klein", "new": "nouveau nuevo neu", "old": "vieux viejo alt",
    "yes": "oui sí ja", "no": "non no nein", "hello": "bonjour hola hallo", "thanks": "merci gracias danke"}

OPPOSITES = [tuple(p.split("-")) for p in """hot-cold big-small old-young good-bad fast-slow high-low long-short hard-soft
bright-dark day-night black-white rich-poor full-empty open-closed early-late wet-dry strong-weak happy-sad clean-dirty loud-quiet
left-right up-down in-out near-far first-last true-false thick-thin wide-narrow heavy-light easy-difficult always-never
begin-end love-hate win-lose buy-sell push-pull sweet-sour brave-afraid deep-shallow cheap-expensive above-below inside-outside
north-south east-west war-peace question-answer friend-enemy""".split()]

IRREGULAR = {"child": "children", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "mouse": "mice", "goose": "geese",
             "knife": "knives", "leaf": "leaves", "wolf": "wolves", "wife": "wives", "life": "lives", "sheep": "sheep", "fish": "fish",
             "ox": "oxen", "person": "people", "shelf": "shelves", "half": "halves", "loaf": "loaves", "thief": "thieves"}
NOUNS = list(IRREGULAR) + """dog cat horse cow bird house door window table chair bed book pen apple egg tree flower star river mountain city street car
train ship friend hand head eye day night year box bus glass church dish brush watch fox baby lady story party country fly berry
boy key toy potato tomato hero orange pear plum nose lamp coin ring letter bottle""".split()


def plural_of(w):
    """The plural of an English noun of these lists."""
    if w in IRREGULAR:
        return IRREGULAR[w]
    if w.endswith(("s", "x", "ch", "sh")) or w in ("potato", "tomato", "hero"):
        return w + "es"
    if w.endswith("y") and w[-2] not in "aeiou":
        return w[:-1] + "ies"
    return w + "s"


VERBS = {}  # base: (he ..., past, participle)
for _line in """see sees saw seen|take takes took taken|find finds found found|buy buys bought bought|sell sells sold sold|break breaks broke broken
carry carries carried carried|drop drops dropped dropped|paint paints painted painted|wash washes washed washed|steal steals stole stolen
bring brings brought brought|hide hides hid hidden|lose loses lost lost|want wants wanted wanted|need needs needed needed|love loves loved loved
hold holds held held|make makes made made|keep keeps kept kept|clean cleans cleaned cleaned|open opens opened opened|throw throws threw thrown
catch catches caught caught|forget forgets forgot forgotten|choose chooses chose chosen|draw draws drew drawn|send sends sent sent
go goes went gone|eat eats ate eaten|drink drinks drank drunk|sing sings sang sung|swim swims swam swum|run runs ran run|write writes wrote written
speak speaks spoke spoken|sleep sleeps slept slept|come comes came come|give gives gave given|know knows knew known|think thinks thought thought
fly flies flew flown|walk walks walked walked|play plays played played|work works worked worked|ask asks asked asked|help helps helped helped
jump jumps jumped jumped|dance dances danced danced|stop stops stopped stopped|study studies studied studied""".replace("\n", "|").split("|"):
    _base, *_forms = _line.split()
    VERBS[_base] = tuple(_forms)
TRANSITIVE = list(VERBS)[:28]

NAMES = """Anna Ben Carl Dora Emma Felix Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul Rosa Sam Tom Vera Will Zoe Alice Bob Clara
David Eva Frank Lucy Max Nora Peter Ruth Simon""".split()
ANIMALS = "fox owl bear cat dog horse rabbit wolf mouse duck goat lion frog cow pig hen goose squirrel hedgehog donkey".split()
COLOURS = "red blue green yellow black white brown orange pink purple grey golden".split()
OBJECTS = "ball kite hat key lamp book cup bag coin ring drum bell box map pen clock spoon basket umbrella bottle letter chair".split()
PLACES = "forest garden kitchen city river park school castle market village field house".split()
JOBS = "baker teacher doctor farmer pilot painter cook driver nurse singer lawyer gardener tailor sailor engineer".split()
CITIES = "Paris Rome Berlin London Madrid Vienna Oslo Lisbon Athens Dublin Warsaw Prague Boston Chicago Toronto Tokyo".split()
COUNTABLE = "apple pear plum egg book coin pen cup orange lemon ball stamp cake card flower shell".split()
SORTABLE = """apple banana cherry dog egg fish goat house ink jam king lemon mouse nut orange pear queen rose sun tree violin water yard zebra
bread cat door fox hat key lamp moon nest owl pen ring ship table""".split()
LIST_WORDS = sorted(set("""apple pear plum lemon cherry bread milk egg salt cheese cat dog fox owl goat red blue green black white sun moon star tree river
book pen cup lamp key hat ball train ship car rose gold stone glass paper""".split()))
ORDINALS = ["first", "second", "third", "fourth", "fifth"]
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
UNITS = [  # one, many, smaller unit, factor, largest count asked for
    ("hour", "hours", "minutes", 60, 12), ("minute", "minutes", "seconds", 60, 12), ("day", "days", "hours", 24, 7), ("week", "weeks", "days", 7, 12),
    ("year", "years", "months", 12, 10), ("metre", "metres", "centimetres", 100, 60), ("kilometre", "kilometres", "metres", 1000, 60),
    ("kilogram", "kilograms", "grams", 1000, 60), ("centimetre", "centimetres", "millimetres", 10, 90), ("litre", "litres", "millilitres", 1000, 60),
    ("tonne", "tonnes", "kilograms", 1000, 60), ("dozen", "dozen", "pieces", 12, 10), ("euro", "euros", "cents", 100, 60)]

ARTICLE = {unit[0]: "an" if unit[0] == "hour" else "a" for unit in UNITS}

# First words of wordings that may stand in lower case.
OPENERS = set("""What What's Which Who Who's How Where Why Is Are Am Do Does Can Could Of Name Tell Give Say Find Write Show Translate Please Put Turn Sort Order Arrange
Reverse Flip Add Subtract Take Multiply Calculate Compute Work Solve Sum Count Continue Complete Extend Go Carry Extract Get Pull Return Make Rewrite Change Negate Replace Swap Here
This My List Remember Note Listen Convert Express If Today After Before In The Capital Opposite Plural Past Introduce Explain Help Hello Hi Hey Bye Goodbye Thanks Thank Good
Repeat Use Ask Chemical Meaning Make See""".split())
ASKING = set("What What's Which Who Who's How Where Why Is Are Am Do Does Can Could Of On May By".split())
COMMANDS = OPENERS - ASKING - set("""If Today After Before In The Capital Opposite Plural Past Chemical Meaning Hello Hi Hey Bye Goodbye Thanks Thank Good
This My Here List Help""".split())
