# SPDX-License-Identifier: Apache-2.0
"""Long-context tasks in English, generated: what has to be found is spread over a long text.

``keys``
    Many objects have a code each; one of the codes is asked for.
``variables``
    Variables take their values from each other; which of them have a certain value?
``aggregation``
    Of a long list of words, which three occur most often?
``extraction``
    One order of many, as a JSON object.

The same seed gives the same documents on every machine; nothing here needs more than the standard
library. A score is a share from 0 to 1; ``chance`` is what an answer gets on average that is drawn
from the words of the text, so that a model near it has not understood the task.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

ADJECTIVES = (
    "amber brave calm dusty eager faint gentle hollow icy jolly keen lively mellow noble odd plain "
    "quiet rusty silent tidy upper vivid warm young"
).split()
NOUNS = (
    "anchor basket candle desk engine feather garden hammer island jacket kettle ladder mirror "
    "needle orchard pillow quarry ribbon saddle tower umbrella valley wagon window"
).split()
VERBS = "follows holds leaves meets moves paints passes reaches sees shadows touches warms".split()
PEOPLE = "Ada Boris Carla Diego Elena Felix Greta Henri Irma Jonas Karin Liam Mira Nils".split()
CITIES = "Athens Bergen Cork Dresden Evora Faro Genoa Hull Izmir Kyoto Lyon Malmo Nice Oslo".split()
GOODS = "brushes candles drums forks gloves hats jars keys lamps maps nets plates rings".split()
FIELDS = ("name", "city", "count", "item")
FREQUENT = 3
"""Words that are asked for in ``aggregation``."""


@dataclass(frozen=True)
class Document:
    """A prompt and what is right after it.

    Parameters
    ----------
    prompt : str
        Ends where the answer begins.
    answer : str
        The whole answer as a model that solves the task would give it.
    parts : tuple of str
        What the answer is scored by: codes, names, words, or fields in the order of ``FIELDS``.
    chance : float
        Average score of an answer that is drawn from the text.
    """

    prompt: str
    answer: str
    parts: tuple[str, ...]
    chance: float


def make_documents(task: str, *, count: int, words: int, seed: int) -> list[Document]:
    """Draw documents of a task.

    Parameters
    ----------
    task : str
        A key of ``TASKS``.
    count : int
        How many.
    words : int
        Of a prompt, about; a token is a little less than a word.
    seed : int
        Documents depend on the task, the words and this number only.

    Raises
    ------
    ValueError
        If the task is unknown, or has no documents of so few or so many words.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    if not 200 <= words <= 40_000:  # of more, codes would have more names than there are
        raise ValueError(f"words is {words}; allowed: 200 to 40000")
    rng = random.Random(f"{task} {words} {seed}")
    return [TASKS[task].make(rng, words) for _ in range(count)]


def score(task: str, text: str, parts: Sequence[str]) -> float:
    """Return how right a text is, from 0 to 1; what follows its first line does not matter."""
    return TASKS[task].score(text.strip().split("\n", 1)[0], parts)


def sentence(rng: random.Random) -> str:
    """Return a sentence that says nothing of interest."""
    return (
        f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} the "
        f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}."
    )


def spread(rng: random.Random, facts: Sequence[str], words: int) -> str:
    """Return the facts in their order, between sentences, with about as many words."""
    missing = words - sum(len(fact.split()) for fact in facts)
    fillers = [sentence(rng) for _ in range(max(0, missing) // 7)]
    places = set(rng.sample(range(len(facts) + len(fillers)), len(facts)))
    rest, told = iter(fillers), iter(facts)
    return " ".join(
        next(told) if place in places else next(rest) for place in range(len(facts) + len(fillers))
    )


def overlap(found: set[str], wanted: Sequence[str]) -> float:
    """Return shared over all: 1 if both are the same, less for what is missing or too much."""
    both = found | set(wanted)
    return len(found & set(wanted)) / len(both) if both else 0.0


# ----------------------------------------------------------------------------------------- keys


def make_keys(rng: random.Random, words: int) -> Document:
    """Return a text with codes, a tenth of its words, and ask for one."""
    number = max(4, words // 70)
    names = rng.sample([f"{a} {n}" for a in ADJECTIVES for n in NOUNS], number)
    codes = [str(code) for code in rng.sample(range(10000, 100000), number)]
    facts = [f"The code of the {name} is {code}." for name, code in zip(names, codes, strict=True)]
    wanted = rng.randrange(number)
    prompt = (
        f"{spread(rng, facts, words)}\nQuestion: What is the code of the {names[wanted]}?\n"
        f"Answer: The code of the {names[wanted]} is"
    )
    return Document(prompt, f" {codes[wanted]}.", (codes[wanted],), 1 / number)


def score_keys(text: str, parts: Sequence[str]) -> float:
    """Say whether the first number is the code."""
    return float(re.findall(r"\d+", text)[:1] == list(parts))


# ------------------------------------------------------------------------------------ variables


def make_variables(rng: random.Random, words: int) -> Document:
    """Return chains of assignments, and ask which variables have the value of one chain."""
    chains, hops = 4, 4
    names = [f"{letter}{digit}" for letter in "ABCDEFGHJKLMNPQRSTUVWXYZ" for digit in range(2, 10)]
    drawn = rng.sample(names, chains * hops)
    values = [str(value) for value in rng.sample(range(10000, 100000), chains)]
    lists = [drawn[i * hops : (i + 1) * hops] for i in range(chains)]
    steps = [
        [f"VAR {a} = {b}." for a, b in zip(chain, [value, *chain], strict=False)]
        for chain, value in zip(lists, values, strict=True)
    ]
    order = [chain for chain in range(chains) for _ in range(hops)]
    rng.shuffle(order)
    queues = [iter(chain) for chain in steps]
    facts = [next(queues[chain]) for chain in order]
    wanted = rng.randrange(chains)
    prompt = (
        f"{spread(rng, facts, words)}\nQuestion: Which variables have the value {values[wanted]}, "
        f"by themselves or through others? There are {hops}.\nAnswer: The variables are"
    )
    # A chain of another value shares nothing; one that is drawn blindly shares one in four.
    chance = _chance_of_overlap(hops, chains * hops)
    return Document(prompt, f" {', '.join(lists[wanted])}.", tuple(lists[wanted]), chance)


def _chance_of_overlap(wanted: int, total: int) -> float:
    """Return the average `overlap` of ``wanted`` drawn from ``total`` with as many right ones."""
    ways = [comb(wanted, both) * comb(total - wanted, wanted - both) for both in range(wanted + 1)]
    shares = [both / (2 * wanted - both) for both in range(wanted + 1)]
    return sum(w * share for w, share in zip(ways, shares, strict=True)) / comb(total, wanted)


def score_variables(text: str, parts: Sequence[str]) -> float:
    """Compare the variables that a text names."""
    return overlap(set(re.findall(r"\b[A-Z][2-9]\b", text)), parts)


# ---------------------------------------------------------------------------------- aggregation


def make_aggregation(rng: random.Random, words: int) -> Document:
    """Return a list in which three words occur four times as often as the others."""
    drawn = rng.sample(NOUNS + ADJECTIVES + VERBS, 24)
    wanted, others = drawn[:FREQUENT], drawn[FREQUENT:]
    times = max(1, words // (4 * FREQUENT + len(others)))
    listed = [word for word in wanted for _ in range(4 * times)]
    listed += [word for word in others for _ in range(times)]
    rng.shuffle(listed)
    prompt = (
        f"{' '.join(listed)}\nQuestion: Which {FREQUENT} words occur most often in this list?\n"
        "Answer: They are"
    )
    chance = _chance_of_overlap(FREQUENT, len(drawn))
    return Document(prompt, f" {', '.join(wanted)}.", tuple(wanted), chance)


def score_aggregation(text: str, parts: Sequence[str]) -> float:
    """Compare the first three words of the list that a text names."""
    known = {*NOUNS, *ADJECTIVES, *VERBS}
    named = [word for word in re.findall(r"[a-z]+", text.lower()) if word in known]
    return overlap(set(list(dict.fromkeys(named))[:FREQUENT]), parts)


# ----------------------------------------------------------------------------------- extraction


def make_extraction(rng: random.Random, words: int) -> Document:
    """Return orders, and ask for one as JSON, after an example of another."""
    number = max(4, words // 9)
    numbers = rng.sample(range(1000, 10000), number)
    orders = [
        (rng.choice(PEOPLE), rng.choice(CITIES), str(rng.randint(2, 60)), rng.choice(GOODS))
        for _ in numbers
    ]
    facts = [
        f"Order {order}: {name} of {city} bought {count} {item}."
        for order, (name, city, count, item) in zip(numbers, orders, strict=True)
    ]
    shown, wanted = rng.sample(range(number), 2)
    prompt = (
        f"{' '.join(facts)}\nQuestion: Give order {numbers[shown]} as JSON.\n"
        f"Answer: {as_json(orders[shown])}\nQuestion: Give order {numbers[wanted]} as JSON.\n"
        "Answer:"
    )
    chance = (1 / len(PEOPLE) + 1 / len(CITIES) + 1 / 59 + 1 / len(GOODS)) / len(FIELDS)
    return Document(prompt, f" {as_json(orders[wanted])}", orders[wanted], chance)


def as_json(order: Sequence[str]) -> str:
    """Return an order as the object that is asked for."""
    return json.dumps(dict(zip(FIELDS, order, strict=True)))


def score_extraction(text: str, parts: Sequence[str]) -> float:
    """Return the share of right fields; 0 if the text does not begin with a JSON object."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(found, dict):
        return 0.0
    right = [str(found.get(name)) == part for name, part in zip(FIELDS, parts, strict=True)]
    return sum(right) / len(right)


@dataclass(frozen=True)
class TextTask:
    """How documents of a task are drawn and answers scored."""

    make: Callable[[random.Random, int], Document]
    score: Callable[[str, Sequence[str]], float]


TASKS = {
    "keys": TextTask(make_keys, score_keys),
    "variables": TextTask(make_variables, score_variables),
    "aggregation": TextTask(make_aggregation, score_aggregation),
    "extraction": TextTask(make_extraction, score_extraction),
}
