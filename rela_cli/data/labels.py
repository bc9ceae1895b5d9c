"""Which well-known label set a dataset's classes are, so that a prior trained with these very labels can be marked.

A folder of CIFAR-10 images is CIFAR-10 whatever its name; its class names give it away.
"""

from __future__ import annotations

import re
from collections.abc import Collection

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
KNOWN_SETS = {"cifar10": frozenset(CIFAR10.split()), "cifar100": frozenset(CIFAR100.split())}
KNOWN = (*KNOWN_SETS, "imagenet")
SYNONYMS = {"plane": "airplane", "car": "automobile"}
WORDNET = re.compile(r"n\d{8}")  # ImageNet's folders, and those of its parts, such as Tiny-ImageNet


def label_set(classes: Collection[str] | None) -> str | None:
    """cifar10, cifar100 or imagenet, by the names of the classes; None when they are nobody's."""
    names = {SYNONYMS.get(name.lower(), name.lower()) for name in classes or ()}
    for known, members in KNOWN_SETS.items():
        if names == members:
            return known
    return "imagenet" if names and all(WORDNET.fullmatch(name) for name in names) else None
