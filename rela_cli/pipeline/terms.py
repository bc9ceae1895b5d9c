"""What a stage's memory is made of: terms, each with a name, its bytes, and the place where they lie."""

from __future__ import annotations

from dataclasses import dataclass

from rela_cli.terminal import as_size

HOLES = 0.2  # of small tensors (counting.py): what glibc's heap holds beside them; measured 0 to 0.4
DEVICE, HOST, MAPPED, PROCESS = "device", "host", "mapped", "process"  # places of terms
SUPPLIES = (DEVICE, HOST, PROCESS)


@dataclass(frozen=True)
class Term:
    """Something that takes memory.

    place: tensors of the device, tensors and arrays of the host, pages of files that are mapped, which the kernel can
    take back; or what the process itself, its libraries and its heap take, which is an estimate.
    """

    name: str
    size: float
    place: str = HOST


@dataclass(frozen=True)
class Taken:
    """What a pass through a network takes at its peak, beside its weights, and the FLOPs of it."""

    peak: float
    small: float  # of the peak, in small tensors (counting.py)
    flops: float = 0.0

    def terms(self, name: str) -> list[Term]:
        """Itself, and the holes that it leaves in the heap."""
        return [Term(name, self.peak, DEVICE), Term("holes in the heap", HOLES * self.small, PROCESS)]


@dataclass(frozen=True)
class Stage:
    """A stage at its peak."""

    name: str
    terms: tuple[Term, ...]

    def total(self, *places: str) -> float:
        """Bytes in some places, or in all but what is mapped."""
        return sum(term.size for term in self.terms if term.place in (places or SUPPLIES))

    def words(self, *places: str) -> str:
        """Its terms in some places, or in all but what is mapped, the largest first."""
        terms = [term for term in self.terms if term.place in (places or SUPPLIES)]
        return ", ".join(f"{t.name} {as_size(round(t.size))}" for t in sorted(terms, key=lambda term: -term.size))
