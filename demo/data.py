#!/usr/bin/python3
"""Generates the demo model's conversations: twelve skills, many wordings, one right answer per prompt.

A *kind* is one type of question. It has wordings (patterns such as "[What is|What's] {a} plus {b}?", every choice
of the brackets is one wording) and a function that draws an *instance* (the values of the slots) with its answer.

The held-out split, by a fixed rule:
- A wording is held out if crc32(wording in lower case, without its final punctuation) % 6 == 0 (if that leaves a
  kind without one, its last wording is). So two wordings that differ in casing or a full stop are on one side.
- An instance is held out if crc32(kind + its slot values) % 10 == 0. Kinds marked `lexical` (a capital, a translation,
  the times table) have nothing to infer an unseen instance from; for these only the wording is unseen.
Training takes neither held-out wordings nor held-out instances; a test prompt is an unseen wording of an unseen
instance. Casing, a missing question mark and "please" vary on both sides.

    python3 data.py            # writes test.jsonl and calibration.jsonl beside this file
    python3 data.py --show 3   # prints a few training prompts of each kind
"""
import argparse
import itertools
import json
import os
import random
import re
from zlib import crc32

from words import *

HERE = os.path.dirname(os.path.abspath(__file__))
KINDS = []


def expand(pattern):
    """All wordings of a pattern: one for each choice of its [a|b] brackets."""
    parts = [p.split("|") if i % 2 else [p] for i, p in enumerate(re.split(r"\[([^\]]*)\]", pattern))]
    return ["".join(choice) for choice in itertools.product(*parts)]


def bare(wording):
    return re.sub(r"[.!?, ]+$", "", wording.lower())


def held_out(text, modulus):
    return crc32(text.encode()) % modulus == 0


def punctuate(wording):
    """A question ends in a question mark, a command in a full stop (the brackets of one pattern mix them)."""
    if wording[-1] in "?." and not wording.endswith(("...", "= ?")):
        last = re.split(r"\. |\{text\} |\{s\} ", wording)[-1]
        first = re.split(r"\W", last)[0]
        if first in ASKING:
            return wording[:-1] + "?"
        if first in COMMANDS:
            return wording[:-1] + "."
    return wording


class Kind:
    def __init__(self, task, name, draw, patterns, weight, lexical, lower, prefix):
        self.task, self.name, self.draw, self.weight = task, name, draw, weight
        self.lexical, self.lower, self.prefix = lexical, lower, prefix
        wordings = sorted({punctuate(w) for p in patterns for w in expand(p)})
        assert len(wordings) >= 12, (name, len(wordings))
        unseen = {bare(w) for w in wordings if held_out(bare(w), 6)} or {bare(wordings[-1])}
        self.unseen = [w for w in wordings if bare(w) in unseen]
        self.seen = [w for w in wordings if bare(w) not in unseen]

    def instance(self, rng, test=False):
        """Slot values and answer, of the wanted side of the split."""
        while True:
            slots, answer = self.draw(rng)
            key = self.name + "|" + "|".join(f"{k}={v}" for k, v in sorted(slots.items()))
            if self.lexical or held_out(key, 10) == test:
                return slots, answer

    def ask(self, rng, slots, test=False):
        """A prompt for the slots, in a wording of the wanted side of the split."""
        return self.surface(rng, rng.choice(self.unseen if test else self.seen).format(**slots))

    def sample(self, rng, test=False):
        """One (prompt, answer) of the wanted side of the split."""
        slots, answer = self.instance(rng, test)
        return self.ask(rng, slots, test), answer

    def surface(self, rng, prompt):
        """The same question as people type it: lower case, no question mark, a please."""
        if prompt.endswith("?") and prompt.split()[0] in ASKING and rng.random() < 0.06:
            prompt = prompt[:-1] + ", please?"
        if prompt[-1] in "?." and rng.random() < 0.2:
            prompt = prompt[:-1]
        r = rng.random()
        if self.lower and r < 0.15:
            prompt = prompt.lower()
        elif r < 0.3 and prompt.split()[0] in OPENERS:
            prompt = prompt[0].lower() + prompt[1:]
        if self.prefix and rng.random() < 0.08:
            if prompt.split()[0] in OPENERS:
                prompt = prompt[0].lower() + prompt[1:]
            prompt = rng.choice(["Hey, ", "Hi! ", "Hello. ", "Gallop, ", "Please: ", "OK, ", "So, ", "Now "]) + prompt
        return prompt


def kind(task, *patterns, weight=1.0, lexical=False, lower=False, prefix=True):
    """Registers the decorated draw(rng) -> (slots, answer) as a kind of `task`."""
    def register(draw):
        KINDS.append(Kind(task, draw.__name__, draw, patterns, weight, lexical, lower, prefix))
        return draw
    return register


def listing(rng, items):
    """A list as people write it."""
    items = [str(i) for i in items]
    style = rng.random()
    if style < 0.65:
        return ", ".join(items)
    if style < 0.85:
        return ", ".join(items[:-1]) + " and " + items[-1]
    return " ".join(items)


def either(rng, items):
    return " or ".join(map(str, items)) if len(items) == 2 and rng.random() < 0.7 else listing(rng, items)


def a(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def cap(s):
    return s[0].upper() + s[1:]


# --- about: small talk ---------------------------------------------------------------------------------------------

ABOUT = {
    "who": ("I am Gallop, a small language model that runs on your own computer.", [
        "[Who|What] are you[?| exactly?| really?]", "[Tell me|Say] [who|what] you are.", "Introduce yourself[.| to me.| please.]",
        "[Can|Could] you [introduce yourself|tell me who you are]?", "Tell me [about yourself|something about yourself|a bit about yourself]."]),
    "name": ("My name is Gallop.", [
        "[What is|What's] your name[?| again?]", "[Tell me|What was|Say] your name[.|?]", "[How|What] [should|can|do] I call you?",
        "Do you have a name?", "What are you called?", "What are you [named|called here]?", "How are you called?", "What do people call you?", "[Tell me|Say] what you are called.", "What do you call yourself?", "[May I ask|Can you tell me] your name?"]),
    "skills": ("I can answer short questions, do small sums, sort lists, translate words and tell short stories.", [
        "What can you do[?| for me?]", "What [are you good at|are your skills|do you know]?", "[How|What] can you help me with?",
        "[Tell me|Show me|Say] what you can do.", "What [kinds|sorts] of [questions|things] can I ask you?", "Help[.|!]", "What do you know [about|a lot about|then]?", "[What|Which] things [do you know|can you do]?", "Tell me what you know.", "What do you know how to do?", "What all can you do?",
        "What [should|could|can] I ask you?"]),
    "hello": ("Hello! What can I do for you?", [
        "[Hello|Hi|Hey|Good morning|Good evening|Good afternoon][.|!||, Gallop!| Gallop| there!| there]", "[Hello|Hi|Hey], how do you do?"]),
    "bye": ("Goodbye! Have a nice day.", [
        "[Bye|Goodbye|See you|Good night|Farewell|Bye bye|See you later][.|!||, Gallop!| Gallop]", "I [have to|must|need to] go now[.|!]"]),
    "thanks": ("You are welcome!", [
        "[Thanks|Thank you|Many thanks|Thanks a lot|Thank you very much|Cheers][.|!||, Gallop!|, that helps.|, that was helpful.]"]),
    "mood": ("I am well, thank you. How can I help?", [
        "How are you[?| today?| doing?| doing today?| feeling?]", "How [is it going|do you feel|do you do|do you feel today]?", "Are you [well|fine|okay|all right][?| today?]"]),
    "maker": ("The Gallop project trained me as a small demo model.", [
        "Who [made|built|trained|created|wrote] you?", "[Tell me|Say] who [made|built|trained|created] you.", "Who is your [maker|creator|author]?",
        "[Where|Who] do you come from?", "By whom were you [made|built|trained]?"]),
    "human": ("No, I am a small language model, not a human.", [
        "Are you [a human|human|a person|a real person|alive|a man|a woman]?", "Am I talking to a [human|person|real person]?", "Is this a [human|person|real person]?"]),
    "layers": ("I have twelve layers.", [
        "How many layers do you have[?| in total?]", "[What is|What's|Tell me] your number of layers[?|.]", "How [deep|many layers deep] are you?",
        "Of how many layers are you made?", "How many [transformer layers|layers] are [in you|there in you|inside you]?", "Count your layers."]),
    "size": ("I have about three million parameters, so I fit in a few megabytes.", [
        "How [big|large|small] are you?", "How many [parameters|weights] do you have?", "[What is|What's|Tell me] your size[?|.]", "How [big|large] is [this model|the model]?",
        "Are you a [big|large|small] model?"]),
    "skipping": ("Gallop skips the layers that a prompt does not need, so the answer comes faster.", [
        "[What is|What's|Explain] layer skipping[?|.]", "[Why|How] [do|can] you skip layers?", "How are you so fast?", "What makes you [fast|so fast|quick]?",
        "What does Gallop do?", "How does Gallop work?", "[Why|How] does Gallop skip layers?", "[Tell me|Explain] how Gallop [works|skips layers]."]),
    "where": ("I run on your own computer, without the internet.", [
        "Where [do you run|are you running|are you|do you live]?", "Do you [need|use] the internet?", "Where are you [now|at the moment|right now|exactly]?", "Are you [online|in the cloud|on the internet]?",
        "[Tell me|Say] where you [run|live|are]."]),
    "tongues": ("I speak English, and I know a few words of French, Spanish and German.", [
        "[What|Which] languages do you [speak|know|understand]?", "[How many|What] languages can you [speak|understand]?", "[Do you speak|Can you speak|Do you understand] [French|German|Spanish|English|other languages|some German|some French]?",
        "[Tell me|Say] which languages you [speak|know]."]),
    "learning": ("I learned from short conversations that a program made up.", [
        "[How|Where] did you learn[?| that?| this?| all this?]", "What did you learn from?", "[How|On what] were you trained?", "What [is|was] your training data?", "What data were you trained on?"]),
    "joke": ("Why did the layer stay at home? The prompt did not need it.", [
        "[Tell me|Tell|Make|Give me|Say] a [joke|good joke|short joke][.|!]", "[Can|Could] you tell me a joke?", "Do you know [a joke|any jokes|a good joke]?", "Make me laugh[.|!]", "Say something funny."]),
}
for _name, (_answer, _patterns) in ABOUT.items():
    def _draw(rng, answer=_answer):
        return {}, answer
    _draw.__name__ = "about_" + _name
    kind("about", *_patterns, weight=0.5, lexical=True, lower=True, prefix=_name not in ("hello", "bye", "thanks"))(_draw)


# --- facts ---------------------------------------------------------------------------------------------------------

@kind("facts", "[What is|What's|Name|Tell me|Give me|Which city is|Do you know|Say] the capital of {country}[?|.]", "[What is|What's|Name] {country}'s capital[?|.]",
      "Which city is {country}'s capital?", "{country}'s capital is [which city|what|called what]?", "The capital of {country}[?| is?| please.| is what?]", "[What|Which] city is the capital of {country}?",
      "Capital of {country}[?|.]", "[Can|Could] you [tell me|name] the capital of {country}?", "I [want|need|would like] to know the capital of {country}.", weight=4, lexical=True, lower=True)
def capital(rng):
    country = rng.choice(list(CAPITALS))
    return {"country": country}, f"The capital of {country} is {CAPITALS[country]}."


@kind("facts", "[Of which|Of what] country is {city} the capital?", "{city} is the capital of [which country|what country|what|where]?", "[Which|What] country has {city} as its capital?",
      "[Which|What] country has the capital {city}?", "Which country's capital is {city}?", "{city} is the capital of [which|what] [nation|state|land]?", "{city} is whose capital?", "[Tell me|Say] of which country {city} is the capital.", "[What|Which] nation has the capital {city}?", "[So {city}|And {city}] is the capital of what?", "[Name|Tell me|Give me|Say] the country whose capital is {city}.", "[What|Which] country is {city} the capital of?", weight=2, lexical=True, lower=True)
def country_of(rng):
    country = rng.choice(list(CAPITALS))
    return {"city": CAPITALS[country]}, f"{CAPITALS[country]} is the capital of {country}."


@kind("facts", "[What is|What's|Tell me|Give me|Name|Say] the chemical symbol [for|of] {element}[?|.]", "[Which|What] symbol does {element} have?", "[What is|What's] the symbol [for|of] {element}?",
      "[How|With which letters] do chemists write {element}?", "Chemical symbol [for|of] {element}[?|.]", weight=1, lexical=True, lower=True)
def symbol(rng):
    e = rng.choice(list(SYMBOLS))
    return {"element": e}, f"The symbol for {e} is {SYMBOLS[e]}."


@kind("facts", "[What is|What's|What do you call|Tell me|Give me|Name|How do you call] a {animal}'s [baby|young][?|.]", "[What is|What's|What do you call] a [baby|young] {animal}[?| called?]",
      "[What is|What's] the [name|word] for a [baby|young] {animal}?", "How do you call a [baby|young] {animal}?", "[A baby|A young] {animal} is called what?", weight=1, lexical=True, lower=True)
def young(rng):
    x = rng.choice(list(YOUNG))
    return {"animal": x}, f"A young {x} is called {a(YOUNG[x])}."


@kind("facts", "[What sound|Which sound|What noise] does [a|the] {animal} make?", "What does [a|the] {animal} say?", "How does [a|the] {animal} [sound|go]?", "[Tell me|Name|Say] the sound of a {animal}.",
      "[What is|What's] the [sound|noise] of a {animal}?", "[What|Which] [sound|noise] comes from a {animal}?", "The {animal} makes [which|what] [noise|sound]?", "What [noise|sound] is made by a {animal}?", "What would [a|the] {animal} say?", "[What|Which] [noise|sound] do you hear from a {animal}?", weight=0.6, lexical=True, lower=True)
def sound(rng):
    x = rng.choice(list(SOUNDS))
    return {"animal": x}, f"The {x} says {SOUNDS[x]}."


@kind("facts", "[What|Which] colour [is|has] {thing}?", "[What is|What's|Tell me|Name|Give me|Say] the colour of {thing}[?|.]", "{thing} [is|has] what colour?", "Of what colour is {thing}?",
      "[Can|Could] you [tell me|name] the colour of {thing}?", weight=1, lexical=True, lower=True)
def colour(rng):
    x = rng.choice(list(COLOUR_OF))
    return {"thing": x}, f"{cap(x)} is {COLOUR_OF[x]}."


@kind("facts", "How many legs does [a|an|one] {animal} have?", "[Tell me|Count|Say|Give me] the legs of a {animal}.", "[What is|What's] the number of legs of a {animal}?", "On how many legs does a {animal} [walk|stand]?",
      "[A|One|Each] {animal} has how many legs?", "How many legs has a {animal}?", "[What|Which] number of legs does a {animal} have?", weight=0.8, lexical=True, lower=True)
def legs(rng):
    x, n = rng.choice(LEGS)
    return {"animal": x}, f"A {x} has {n} legs." if n != "no" else f"A {x} has no legs."


# --- translate -----------------------------------------------------------------------------------------------------

@kind("translate", "[Translate|Please translate] [{q}|the word {q}] [to|into] {lang}[.|]", "[What is|What's|Say|Tell me|Give me] {q} in {lang}[?|.]", "[What is|What's|Tell me|Give me] the {lang} [word|name|term] for {q}[?|.]",
      "How do [you|I|people] say {q} in {lang}?", "[Can|Could] you translate {q} [to|into] {lang}?", "{q} in {lang}[?|, please.]", "How is {q} [called|said] in {lang}?", "[Which|What] is the {lang} word for {q}?", "[What|How] do the {people} call [a {w}|the {w}]?",
      weight=5, lexical=True, lower=True)
def translate_to(rng):
    w = rng.choice(list(DICTIONARY))
    i = rng.randrange(3)
    return {"q": rng.choice([f"'{w}'", f'"{w}"', w]), "w": w, "lang": LANGUAGES[i], "people": PEOPLE[i]}, DICTIONARY[w].split()[i]


@kind("translate", "[What does|What's|What is] the {lang} word {q}[?| in English?]", "What does {q} mean [in English?|in {lang}?]", "[Translate|Please translate] [{q}|the {lang} word {q}] [to|into] English[.|]", "[Translate|Please translate] {q} from {lang}[.| into English.| to English.]",
      "How do you say the {lang} word {q} in English?", "[What is|What's|Tell me|Give me] the English [word|meaning] [for|of] the {lang} word {q}[?|.]", "[The meaning|Meaning] of the {lang} word {q}[?|.]", weight=3, lexical=True)
def translate_from(rng):
    w = rng.choice(list(DICTIONARY))
    i = rng.randrange(3)
    f = DICTIONARY[w].split()[i]
    return {"q": rng.choice([f"'{f}'", f'"{f}"', f]), "lang": LANGUAGES[i]}, w


# --- words: opposites, plurals, past tense -------------------------------------------------------------------------

def quote(rng, w):
    return rng.choice([f"'{w}'", f'"{w}"', w, w])


@kind("words", "[What is|What's|Tell me|Give me|Name|Say|Find] the opposite of {w}[?|.]", "[Which|What] word [is the opposite of|means the opposite of] {w}?", "The opposite of {w}[?| is?| is what?]", "Opposite of {w}[?|.]",
      "[Can|Could] you [tell me|give me|name] the opposite of {w}?", "What is not {w}, but the opposite?", "Opposite [word of|for|to|of the word] {w}[?|.]", "{w}: [opposite|the opposite|its opposite][?|.]", "Its opposite: {w}", "[I need|I want] the opposite of {w}.", "{w} is the opposite of [what|which word]?", weight=3, lexical=True, lower=True)
def opposite(rng):
    pair = list(rng.choice(OPPOSITES))
    rng.shuffle(pair)
    return {"w": quote(rng, pair[0])}, pair[1]


@kind("words", "[What is|What's|Tell me|Give me|Name|Say|Write] the plural of {w}[?|.]", "[What is|What's] the plural form of {w}?", "The plural of {w}[?| is?| is what?]", "Plural of {w}[?|.]", "[Can|Could] you [tell me|give me|write] the plural of {w}?",
      "[Put|Turn] {w} into the plural.", "How do you [write|say] the plural of {w}?", "One {x}, two [what?|of what?]", "[What|Which] is the word for more than one {x}?", weight=3, lexical=True, lower=True)
def plural(rng):
    w = rng.choice(NOUNS)
    return {"w": quote(rng, w), "x": w}, plural_of(w)


@kind("words", "[What is|What's|Tell me|Give me|Name|Say|Write] the past tense of {w}[?|.]", "[What is|What's] the past form of {w}?", "The past tense of {w}[?| is?| is what?]", "Past tense of {w}[?|.]", "[Can|Could] you [tell me|give me|write] the past tense of {w}?",
      "[Put|Turn] {w} into the past tense.", "How do you [write|say] {w} in the past tense?", "[Today I {x}, yesterday I what?|Today we {x}, yesterday we what?]", weight=2, lexical=True, lower=True)
def past(rng):
    w = rng.choice(list(VERBS))
    return {"w": quote(rng, w), "x": w}, VERBS[w][1]


# --- arithmetic ----------------------------------------------------------------------------------------------------

ASK = "[What is|What's|Calculate|Compute|Work out|Tell me|How much is|Solve|Please calculate] "


@kind("arithmetic", ASK + "{a} [+|plus] {b}[?|.]", "{a} [+|plus] {b}[?| =| = ?| is?| equals?| makes what?]", "[Add|Please add|Sum] {a} and {b}[.|]", "[What is|What's|Find|Give me] the sum of {a} and {b}[?|.]", "[What do you get|What do I get] if [you|I] add {b} to {a}?", "Add {b} to {a}.",
      "How much do {a} and {b} make?", "[What is|What's|Calculate|How much is] {a}+{b}?", "{a}+{b}[?|=|=?]", weight=6, lower=True)
def add(rng):
    # One of the two has one digit: carrying over two columns takes far longer to learn than all the other skills.
    x, y = rng.sample((rng.randint(0, 99), rng.randint(0, 9)), 2)
    return {"a": x, "b": y}, str(x + y)


@kind("arithmetic", ASK + "{a} [-|minus] {b}[?|.]", "{a} [-|minus] {b}[?| =| = ?| is?| equals?| makes what?]", "[Subtract|Take|Please subtract] {b} from {a}[.|]", "[What is|What's|Find|Give me] the difference of {a} and {b}[?|.]", "[What do you get|What do I get] if [you|I] [take|subtract] {b} from {a}?",
      "How much is left of {a} if I take away {b}?", "[Take|Please take|Now take] {b} away from {a}.", "Take away {b} from {a}.", "If you take {b} from {a}, what [is left|remains]?", "[Please take|Now take] {b} from {a}.", "{a} take away {b}?", "[What is|What's|Calculate|How much is] {a}-{b}?", "{a}-{b}[?|=|=?]", weight=6, lower=True)
def subtract(rng):
    y = rng.randint(0, 9)
    x = rng.randint(y, 99)
    return {"a": x, "b": y}, str(x - y)


@kind("arithmetic", ASK + "{a} [*|times|x|multiplied by] {b}[?|.]", "{a} [*|times|x] {b}[?| =| = ?| is?| equals?| makes what?]", "[Multiply|Please multiply] {a} [by|and|with] {b}[.|]", "[What is|What's|Find|Give me] the product of {a} and {b}[?|.]", "[What is|What's|Calculate|How much is] {a}*{b}?", "{a}*{b}[?|=|=?]", weight=1.5, lexical=True, lower=True)
def multiply(rng):
    x, y = rng.randint(0, 10), rng.randint(0, 10)
    return {"a": x, "b": y}, str(x * y)


@kind("arithmetic", "{name} has {a} {things} and [buys|gets|finds] {b} more. How many {things} does {name} have [now|then|in total]?", "{name} had {a} {things}, then [bought|got|found] {b} more. How many {things} [does {name} have now|are there now|are there]?",
      "There are {a} {things} in a [box|bag] and {b} in [another|a second]. How many {things} are there [in total|together|in all]?", weight=1.5)
def gain(rng):
    x, y = rng.randint(2, 60), rng.randint(2, 9)
    return {"a": x, "b": y, "name": rng.choice(NAMES), "things": plural_of(rng.choice(COUNTABLE))}, str(x + y)


@kind("arithmetic", "{name} has {a} {things} and [loses|sells|gives away] {b}. How many {things} does {name} have [now|then|left]?", "{name} had {a} {things}, then [lost|sold|gave away] {b}. How many {things} [does {name} have now|are left|does {name} have left]?",
      "There are {a} {things} in a [box|bag]. {name} takes {b} [out|away]. How many {things} [are left|remain|are still there]?", weight=1.5)
def loss(rng):
    y = rng.randint(2, 9)
    x = rng.randint(y + 1, 60)
    return {"a": x, "b": y, "name": rng.choice(NAMES), "things": plural_of(rng.choice(COUNTABLE))}, str(x - y)


# --- order: sorting, reversing, extremes ---------------------------------------------------------------------------

@kind("order", "[Sort|Order|Arrange|Please sort|Put in order] [these numbers|the numbers|the following numbers|this list of numbers]: {l}", "[Sort|Order|Arrange] [these numbers|the numbers|these|the following numbers] from [smallest to largest|lowest to highest|small to large|low to high]: {l}",
      "[Sort|Order|Arrange] [{l}|the numbers {l}] [in ascending order|from smallest to largest][.|]", "[Can|Could] you sort [these numbers|the numbers]: {l}", "[Sort|Order] {l}", "Put {l} in [ascending order|order][.|]", weight=5, lower=True)
def sort_up(rng):
    l = rng.sample(range(1, 100) if rng.random() < 0.7 else range(1, 20), rng.randint(3, 4))
    return {"l": listing(rng, l)}, ", ".join(map(str, sorted(l)))


@kind("order", "[Sort|Order|Arrange|Please sort] [these numbers|the numbers|these|the following numbers] from [largest to smallest|highest to lowest|large to small|high to low]: {l}",
      "[Sort|Order|Arrange] [{l}|the numbers {l}] [in descending order|from largest to smallest][.|]", "[Sort|Order|Arrange] [these numbers|the numbers|these|the following numbers] in descending order: {l}", "Put {l} in descending order[.|]", weight=3, lower=True)
def sort_down(rng):
    l = rng.sample(range(1, 100) if rng.random() < 0.7 else range(1, 20), rng.randint(3, 4))
    return {"l": listing(rng, l)}, ", ".join(map(str, sorted(l, reverse=True)))


@kind("order", "[Sort|Order|Arrange|Please sort] [these words|the words|the following words|this list] [alphabetically|by the alphabet|in alphabetical order|from A to Z]: {l}", "[Sort|Order|Arrange|Put] [{l}|the words {l}] in alphabetical order[.|]",
      "[Sort|Order|Arrange] {l} [alphabetically|from A to Z][.|]", "[Can|Could] you sort these words: {l}", "[Sort|Order] [the|these] words: {l}", weight=3, lower=True)
def sort_words(rng):
    l = rng.sample(SORTABLE, 3)
    return {"l": listing(rng, l)}, ", ".join(sorted(l))


@kind("order", "[Reverse|Turn around|Please reverse|Flip] [this list|the list|these items|the following list|the order of these items]: {l}", "[Write|Say|Repeat|Give me] [these items|this list|the following items] [backwards|in reverse order|in reverse|from last to first]: {l}",
      "[Reverse|Turn around|Flip] [{l}|the list {l}][.|]", "[Can|Could] you reverse [this list|these items]: {l}", "[Write|Say|Put] {l} in reverse order[.|]", weight=3, lower=True)
def reverse(rng):
    l = rng.sample(LIST_WORDS, rng.randint(3, 4)) if rng.random() < 0.7 else rng.sample(range(1, 100), rng.randint(3, 4))
    return {"l": listing(rng, l)}, ", ".join(map(str, l[::-1]))


@kind("order", "[What is|What's|Find|Give me|Tell me|Name|Which is] the [largest|biggest|highest|greatest] [number|of these numbers|number of these|value]: {l}[?|]", "[Which|What] [number|of these numbers] is the [largest|biggest|highest|greatest]: {l}[?|]", "[Which|What] is [larger|bigger|greater][:|,] {l}?", "[Which|What] number is [larger|bigger|greater][:|,] {l}?", weight=2, lower=True)
def largest(rng):
    l = rng.sample(range(1, 100), rng.randint(2, 4))
    return {"l": either(rng, l)}, str(max(l))


@kind("order", "[What is|What's|Find|Give me|Tell me|Name|Which is] the [smallest|lowest|least] [number|of these numbers|number of these|value]: {l}[?|]", "[Which|What] [number|of these numbers] is the [smallest|lowest|least]: {l}[?|]", "[Which|What] is [smaller|lower|less][:|,] {l}?", "[Which|What] number is [smaller|lower|less][:|,] {l}?", weight=2, lower=True)
def smallest(rng):
    l = rng.sample(range(1, 100), rng.randint(2, 4))
    return {"l": either(rng, l)}, str(min(l))


# --- recall --------------------------------------------------------------------------------------------------------

@kind("recall", "[Here is a list|This is my list|My list|The list is|List|Take this list]: {l}. [What is|What's|Which is|Tell me|Give me|Name] the {nth} [item|one|word|entry][?|.]", "[What is|What's|Name|Give me|Tell me] the {nth} [item|word|entry] [of|in] [this list|the list]: {l}", weight=4)
def recall_nth(rng):
    l = rng.sample(LIST_WORDS, rng.randint(3, 4))
    i = rng.randrange(len(l) + 1)
    nth, word = ("last", l[-1]) if i == len(l) else (ORDINALS[i], l[i])
    return {"l": ", ".join(l), "nth": nth}, word


MINE = {  # what the prompt says about the speaker
    "name": ("Your name is {name}.", "[What is|What's|Tell me|Say|Do you remember] my name?"),
    "age": ("You are {age} years old.", "[How old am I|What is my age|What's my age|Tell me my age|Do you remember my age|How many years old am I]?"),
    "city": ("You live in {city}.", "[Where do I live|In which city do I live|What city do I live in|Which city do I live in|Where is my home|Tell me where I live]?"),
    "job": ("You work as {ajob}.", "[What is my job|What's my job|What do I do|What do I work as|Tell me my job|What is my work]?"),
}
for _name, (_answer, _question) in MINE.items():
    def _draw(rng, answer=_answer):
        p, _ = person(rng)
        p["ajob"] = a(p["job"])
        text = rng.choice([
            "My name is {name}, I am {age} years old, I live in {city} and I work as {ajob}.",
            "I am {name}. I live in {city}. I work as {ajob}. I am {age}.",
            "I am {name}, {age} years old, {ajob} in {city}.",
            "I work as {ajob} in {city}. I am {age} and my name is {name}.",
        ]).format(**p)
        return {"text": text}, answer.format(**p)
    _draw.__name__ = "recall_" + _name
    kind("recall", "[|Remember this. |Listen. |Hello. |Please remember: ]{text} " + _question, "{text} [So, |Now, |And now: ]" + _question)(_draw)


# --- dates and units -----------------------------------------------------------------------------------------------

@kind("dates", "[What|Which] day [comes|is] [after|one day after|the day after|right after] {d}?", "[What|Which] day follows {d}?", "[What is|Tell me|Name|Say] the day after {d}[?|.]", "If today is {d}, [what|which] day is [tomorrow|it tomorrow]?", "Today is {d}. [What|Which] day is tomorrow?", "After {d} comes [what|which] day?", weight=1.5, lexical=True, lower=True)
def day_after(rng):
    i = rng.randrange(7)
    return {"d": DAYS[i]}, f"The day after {DAYS[i]} is {DAYS[(i + 1) % 7]}."


@kind("dates", "[What|Which] day [comes|is] [before|one day before|the day before] {d}?", "[What|Which] day comes right before {d}?", "[What is|Tell me|Name|Say] the day before {d}[?|.]", "If today is {d}, [what|which] day was [yesterday|it yesterday]?", "Today is {d}. [What|Which] day was yesterday?", "Before {d} comes [what|which] day?", weight=1.5, lexical=True, lower=True)
def day_before(rng):
    i = rng.randrange(7)
    return {"d": DAYS[i]}, f"The day before {DAYS[i]} is {DAYS[(i - 1) % 7]}."


@kind("dates", "[What|Which] day is {n} days after {d}?", "[What|Which] day is it {n} days after {d}?", "[What|Which] day comes {n} days after {d}?", "If today is {d}, [what|which] day is it in {n} days?", "Today is {d}. [What|Which] day [is it|will it be] in {n} days?", "[Name|Tell me|Say] the day {n} days after {d}.", "In {n} days from {d}, [what|which] day is it?", weight=2, lexical=True, lower=True)
def days_later(rng):
    i, n = rng.randrange(7), rng.randint(2, 3)
    return {"d": DAYS[i], "n": rng.choice([n, NUMBER_WORDS[n]])}, f"{DAYS[(i + n) % 7]}"


@kind("dates", "[What|Which] month [comes|is] [after|right after|directly after] {m}?", "[What is|Tell me|Name|Say] the month after {m}[?|.]", "[What|Which] month follows {m}?", "After {m} comes [what|which] month?", "It is {m}. [What|Which] month [is|comes] next?", weight=1.5, lexical=True, lower=True)
def month_after(rng):
    i = rng.randrange(12)
    return {"m": MONTHS[i]}, f"The month after {MONTHS[i]} is {MONTHS[(i + 1) % 12]}."


@kind("dates", "How many days [are there in|are in|has|does] {m}[?| have?]", "How long is {m} in days?", "[What is|Tell me|Name|Say] the number of days in {m}[?|.]", "{m} has how many days?", "[Tell me|Say] how many days {m} has.", "How many days long is {m}?", "How many days does the month of {m} have?", weight=1.5, lexical=True, lower=True)
def month_days(rng):
    i = rng.randrange(12)
    n = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][i]
    return {"m": MONTHS[i]}, f"{MONTHS[i]} has {n} days."


@kind("dates", "How many {small} [are there in|are in|make|are] {n} {big}?", "[Convert|Change|Turn] {n} {big} [to|into] {small}[.|]", "[What is|What are|How much is|How much are|Give me|Express|Write] {n} {big} in {small}[?|.]", "{n} {big} [are|is|make] how many {small}?", "{n} {big} in {small}[?|.]", "[Please convert|Now convert|Now turn|Please turn] {n} {big} [to|into] {small}.", "How many {small} [does it take to make|do you get from|is|fit in] {n} {big}?", "What number of {small} [are in|is in|makes] {n} {big}?", weight=5, lower=True)
def convert(rng):
    big, bigs, smalls, factor, most = rng.choice(UNITS)
    n = rng.randint(1, most)
    if n == 1:
        return {"n": rng.choice(["one", "1", ARTICLE[big]]), "big": big, "small": smalls}, f"{factor} {smalls}"
    return {"n": n, "big": bigs, "small": smalls}, f"{n * factor} {smalls}"


# --- story ---------------------------------------------------------------------------------------------------------

TELL = "[Tell|Tell me|Write|Write me|Make up|Give me|Please tell me|Can you tell me|Could you write] a [story|short story|little story|tale] "


@kind("story", TELL + "[about|of] {x} [who|that] [finds|found|discovers] {y}[.|]", TELL + "in which {x} [finds|discovers] {y}[.|]", weight=2)
def story_find(rng):
    x, y, z = rng.choice(ANIMALS), rng.choice(OBJECTS), rng.choice(PLACES)
    return {"x": a(x), "y": a(y) + f" in the {z}"}, (
        f"Once upon a time, {a(x)} went to the {z}. There it found {a(y)}. The {x} took the {y} home and was very happy.")


@kind("story", TELL + "[about|of] {x} [who|that] [loses|lost] {y}[.|]", TELL + "in which {x} loses {y}[.|]", weight=2)
def story_lose(rng):
    x, w, y = rng.choice(ANIMALS), rng.choice(ANIMALS), rng.choice(OBJECTS)
    while w == x:
        w = rng.choice(ANIMALS)
    return {"x": a(x), "y": f"its {y} and meets {a(w)}"}, (
        f"Once upon a time, {a(x)} lost its {y}. It looked everywhere. Then {a(w)} came and brought the {y} back. They became good friends.")


@kind("story", TELL + "[about|of] {x}[.|]", weight=1, lexical=True, lower=True)
def story_about(rng):
    x = rng.choice(ANIMALS)
    return {"x": a(x)}, (
        f"Once upon a time, there was {a(x)}. The {x} wanted to see the sea. It walked for three days, saw the blue water and came home happy.")


@kind("story", "[Tell|Tell me|Write|Write me|Make up|Give me|Please tell me|Can you tell me|Could you write] a [story|short story|little story|tale][.|]", weight=0.5, lexical=True, lower=True)
def story_any(rng):
    return {}, "Once upon a time, there was a horse. It carried twelve bags up a hill. It left three of them at home and came first."


@kind("story", TELL + "[about|of] {who} and {x}[.|]", TELL + "with {who} and {x} in it[.|]", weight=2)
def story_friends(rng):
    who, x = rng.choice(NAMES), rng.choice(ANIMALS)
    return {"who": who, "x": a(x)}, (
        f"One day, {who} met {a(x)}. The {x} was hungry, so {who} gave it some bread. From that day on, {who} and the {x} were friends.")


# --- extract: fields into JSON -------------------------------------------------------------------------------------

def person(rng):
    p = {"name": rng.choice(NAMES), "age": rng.randint(18, 90), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}
    text = rng.choice([
        "{name} is {age} years old, lives in {city} and works as {ajob}.",
        "{name}, {age}, is {ajob} in {city}.",
        "{name} is {ajob} from {city} and is {age} years old.",
        "My name is {name}. I am {age} and I work as {ajob} in {city}.",
        "{name} lives in {city}. At {age}, {name} works as {ajob}.",
        "In {city} lives {name}, {ajob}, {age} years old.",
    ]).format(ajob=a(p["job"]), **p)
    return p, text


@kind("extract", "[Extract|Give me|Get|Pull out|Return|Find|Take|Please extract] [the {f}|only the {f}] [as JSON|in JSON|into JSON|as a JSON object]: {text}", "{text} [Extract|Give me|Return|Write] [the {f}] [as JSON|in JSON|as a JSON object].", "[Turn|Put] the {f} into JSON: {text}", "[What is|What's] the {f} [as JSON|in JSON]? {text}", weight=5)
def extract(rng):
    p, text = person(rng)
    fields = rng.sample(list(p), rng.randint(1, 3))
    f = fields[0] if len(fields) == 1 else ", ".join(fields[:-1]) + " and " + fields[-1]
    return {"f": f, "text": text}, json.dumps({k: p[k] for k in fields})


@kind("extract", "[Extract|Give me|Get|Return|Find|Please extract] [the order|the items|what is ordered] [as JSON|in JSON|into JSON|as a JSON object]: {text}", "[Turn|Put|Make] [this order|the order] into JSON: {text}", "{text} [Extract|Give me|Return|Write] [the order] [as JSON|in JSON].", weight=2)
def extract_order(rng):
    n, item, who = rng.randint(2, 40), rng.choice(COUNTABLE), rng.choice(NAMES)
    text = rng.choice(["{who} orders {n} {items}.", "{who} would like {n} {items}, please.", "Please send {n} {items} to {who}.", "{n} {items} for {who}."]).format(who=who, n=n, items=plural_of(item))
    return {"text": text}, json.dumps({"item": item, "count": n, "for": who})


# --- sequence ------------------------------------------------------------------------------------------------------

NEXT = ["[What|Which number] comes next[:| in] {l}[?|, ...]", "[Continue|Go on with|Carry on] [the sequence|this sequence|the series|the row]: {l}[|, ...]", "[What is|What's|Give me|Tell me|Find] the next [number|one|term] [in|of] [the sequence|this sequence|the series] {l}[?|]",
        "{l}[, ...|, what comes next?|, and then?|: what is next?]", "[Complete|Extend] [the sequence|this sequence|the series]: {l}[|, ...]"]


@kind("sequence", *NEXT, weight=4, lower=True)
def steps(rng):
    step = rng.choice([1, 2, 3, 5, 10, -1])
    n = rng.randint(3, 4)
    start = rng.randint(1, 50) - min(0, step * n)
    l = [start + step * i for i in range(n + 1)]
    return {"l": ", ".join(map(str, l[:-1]))}, str(l[-1])


@kind("sequence", *[p.replace("number", "word") for p in NEXT], weight=2, lower=True)
def cycle(rng):
    words = rng.sample(LIST_WORDS, rng.randint(2, 3))
    n = rng.randint(len(words) + 1, 2 * len(words) + 1)
    l = [words[i % len(words)] for i in range(n + 1)]
    return {"l": ", ".join(l[:-1])}, l[-1]


@kind("sequence", *[p.replace("number", "letter") for p in NEXT], weight=1.5, lexical=True, lower=False)
def letters(rng):
    step, n = rng.randint(1, 2), rng.randint(3, 4)
    start = rng.randrange(26 - step * n)
    l = [chr(97 + start + step * i) for i in range(n + 1)]
    if rng.random() < 0.5:
        l = [c.upper() for c in l]
    return {"l": ", ".join(l[:-1])}, l[-1]


@kind("sequence", *[p.replace("number", "word") for p in NEXT], weight=1.5, lexical=True, lower=True)
def calendar(rng):
    names = rng.choice([DAYS, MONTHS])
    n, start = rng.randint(2, 4), rng.randrange(len(names))
    l = [names[(start + i) % len(names)] for i in range(n + 1)]
    return {"l": ", ".join(l[:-1])}, l[-1]


@kind("sequence", "Count from {a} to {b}[.|]", "[Write|List|Say|Give me] [the numbers|all numbers|numbers] from {a} to {b}[.|]", "[Can|Could] you count from {a} to {b}?", "[Please count|Count up] from {a} to {b}[.|]", weight=1.5, lower=True)
def count(rng):
    x, n = rng.randint(1, 60), rng.randint(3, 7)
    return {"a": x, "b": x + n}, ", ".join(str(x + i) for i in range(n + 1))


# --- rewrite -------------------------------------------------------------------------------------------------------

def clause(rng):
    """Subject, verb, object of a simple sentence, all in its present form."""
    who = rng.choice([rng.choice(NAMES), "the " + rng.choice(ANIMALS), "the " + rng.choice(JOBS), "he", "she"])
    verb = rng.choice(TRANSITIVE)
    return who, verb, "the " + rng.choice(OBJECTS)


DO = "[Rewrite|Put|Change|Turn|Please rewrite|Please put] "


@kind("rewrite", DO + "[this sentence|the sentence|this] [in|into] the past tense: {s}", DO + "this [in|into] the past: {s}", "{s} [Put|Write|Say] [that|this|it] in the past tense.", "[What is|Write] the past tense of this sentence[?|:] {s}", weight=2)
def to_past(rng):
    s, v, o = clause(rng)
    return {"s": cap(f"{s} {VERBS[v][0]} {o}.")}, cap(f"{s} {VERBS[v][1]} {o}.")


@kind("rewrite", DO + "[this sentence|the sentence|this] [in|into] the future tense: {s}", DO + "this [in|into] the future: {s}", "{s} [Put|Write|Say] [that|this|it] in the future tense.", "[What is|Write] the future tense of this sentence[?|:] {s}", weight=1.5)
def to_future(rng):
    s, v, o = clause(rng)
    return {"s": cap(f"{s} {VERBS[v][0]} {o}.")}, cap(f"{s} will {v} {o}.")


@kind("rewrite", "[Make|Turn|Rewrite|Change|Please make] [this sentence|the sentence|this] [negative|into a negative one|into a negative sentence]: {s}", "[Negate|Please negate] [this sentence|the sentence|this]: {s}", "{s} [Make|Turn] [that|this|it] [negative|into a negative sentence].", "[Say|Write] the negative of this sentence: {s}", weight=2)
def negate(rng):
    s, v, o = clause(rng)
    return {"s": cap(f"{s} {VERBS[v][0]} {o}.")}, cap(f"{s} does not {v} {o}.")


@kind("rewrite", "[Make|Turn|Rewrite|Change|Please turn] [this sentence|the sentence|this] [into a question|as a question]: {s}", "{s} [Make|Turn] [that|this|it] into a question.", "[Ask|Write|Say] this as a question: {s}", weight=2)
def question(rng):
    s, v, o = clause(rng)
    return {"s": cap(f"{s} {VERBS[v][0]} {o}.")}, f"Does {s} {v} {o}?"


@kind("rewrite", "[Make|Turn|Rewrite|Change|Put|Please put] [this sentence|the sentence|this] [into the passive|in the passive|in the passive voice]: {s}", "{s} [Put|Write|Say] [that|this|it] in the passive[.| voice.]", weight=1.5)
def passive(rng):
    who = rng.choice([rng.choice(NAMES), "the " + rng.choice(ANIMALS), "the " + rng.choice(JOBS)])
    v, o = rng.choice(TRANSITIVE), "the " + rng.choice(OBJECTS)
    return {"s": cap(f"{who} {VERBS[v][0]} {o}.")}, cap(f"{o} is {VERBS[v][2]} by {who}.")


@kind("rewrite", "[Replace|Swap|Change|Please replace] {x} [with|by|for] {y} in [this sentence|the sentence|this]: {s}", "[Rewrite|Repeat|Write] [this sentence|the sentence] with {y} instead of {x}: {s}", "{s} [Replace|Change|Please replace|Now replace|Swap] {x} [with|by|for] {y}.", "[Say|Use] {y} instead of {x}: {s}", weight=2)
def replace(rng):
    who, v, o = clause(rng)
    y = rng.choice([n for n in OBJECTS if n != o[4:]])
    s = cap(f"{who} {VERBS[v][0]} {o}.")
    return {"x": quote(rng, o[4:]), "y": quote(rng, y), "s": s}, s.replace(o[4:] + ".", y + ".")


TASKS = sorted({k.task for k in KINDS})


# --- conversations -------------------------------------------------------------------------------------------------

# The harder skills get more of the training prompts.
TASK_WEIGHT = {"about": 0.7, "arithmetic": 2.0, "order": 1.8, "recall": 1.2, "story": 0.5, "sequence": 1.2, "rewrite": 0.9}
NAMED = {k.name: k for k in KINDS}
BY_TASK = {t: [k for k in KINDS if k.task == t] for t in TASKS}
SHARES = [TASK_WEIGHT.get(k.task, 1.0) * k.weight / sum(x.weight for x in BY_TASK[k.task]) for k in KINDS]
cumulative = list(itertools.accumulate(SHARES))


def focus(need):
    """From now on, kind i gets need[i] times its share of the prompts."""
    cumulative[:] = itertools.accumulate(s * n for s, n in zip(SHARES, need))


def draw_kind(rng):
    return rng.choices(KINDS, cum_weights=cumulative)[0]


def follow_up(rng):
    """Exchanges whose later questions lean on the earlier ones."""
    style = rng.randrange(5)
    if style == 0:
        name = rng.choice(NAMES)
        turns = [(rng.choice(["My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}!", "I'm {}", "my name is {}", "Call me {}."]).format(name), f"Nice to meet you, {name}.")]
        if rng.random() < 0.4:
            turns.append(draw_kind(rng).sample(rng))
        if rng.random() < 0.8:
            turns.append((rng.choice(["What is my name?", "What's my name?", "Who am I?", "Do you remember my name?", "what is my name", "Tell me my name.", "Do you know my name?"]), f"Your name is {name}."))
        return turns
    if style == 1:
        x = rng.choice(list(CAPITALS))
        again = rng.choice(["And of {}?", "And {}?", "What about {}?", "And the capital of {}?", "And that of {}?", "and {}"]).format(x)
        return [NAMED["capital"].sample(rng), (again, f"The capital of {x} is {CAPITALS[x]}.")]
    if style == 2:
        slots, answer = NAMED["translate_to"].instance(rng)
        i = rng.randrange(3)
        again = rng.choice(["And in {}?", "And {}?", "What about {}?", "Now in {}.", "and in {}"]).format(LANGUAGES[i])
        return [(NAMED["translate_to"].ask(rng, slots), answer), (again, DICTIONARY[slots["w"]].split()[i])]
    if style == 3:
        prompt, answer = NAMED["sort_up"].sample(rng)
        again = rng.choice(["Now reverse it.", "And in reverse?", "Now the other way round.", "Now from largest to smallest."])
        return [(prompt, answer), (again, ", ".join(answer.split(", ")[::-1]))]
    slots, answer = NAMED["add"].instance(rng)
    n = rng.randint(1, 9)
    return [(NAMED["add"].ask(rng, slots), answer), (rng.choice(["And plus {}?", "Now add {}.", "Add {}.", "Plus {}?"]).format(n), str(int(answer) + n))]


def conversation(rng):
    """A training sample: [(prompt, answer), ...]. Seven in ten hold one exchange, the rest two to five."""
    r = rng.random()
    if r < 0.72:
        return [draw_kind(rng).sample(rng)]
    if r < 0.80:
        return follow_up(rng)
    return [turn for _ in range(rng.randint(2, 4)) for turn in (follow_up(rng) if rng.random() < 0.1 else [draw_kind(rng).sample(rng)])]


def examples(seed, per_task, test):
    """[{prompt, answer, task}] without repeats, each skill's kinds in turn."""
    rng, out = random.Random(seed), []
    for task in TASKS:
        seen, i, tries = set(), 0, 0
        kinds = BY_TASK[task]
        while i < per_task and tries < 50 * per_task:
            tries += 1
            prompt, answer = kinds[tries % len(kinds)].sample(rng, test)
            if prompt not in seen:
                seen.add(prompt)
                out.append({"prompt": prompt, "answer": answer, "task": task})
                i += 1
    return out


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--show", type=int, default=0, help="print this many training prompts of each kind and write nothing")
    args = args.parse_args()
    if args.show:
        rng = random.Random(1)
        for k in KINDS:
            print(f"# {k.task}/{k.name}: {len(k.seen)} wordings, {len(k.unseen)} held out")
            for _ in range(args.show):
                print("  ", " -> ".join(map(repr, k.sample(rng))))
        return
    for name, seed, per_task, test in (("test", 11, 80, True), ("calibration", 12, 120, False)):
        with open(os.path.join(HERE, name + ".jsonl"), "w") as f:
            for e in examples(seed, per_task, test):
                f.write(json.dumps(e, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
