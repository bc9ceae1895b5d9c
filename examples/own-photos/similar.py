"""The nearest photos of each photo, from the file that `rela embed` wrote: python similar.py features.npz."""

import argparse

import numpy


def main() -> None:
    """Print the neighbours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", help="FILE.npz of `rela embed`")
    parser.add_argument("--count", type=int, default=3, help="how many neighbours (default: 3)")
    parser.add_argument("--near", type=float, default=-1.0, help="only neighbours with at least this cosine")
    given = parser.parse_args()
    with numpy.load(given.features) as file:
        features, names = file["features"], file["files"]
    features = features / numpy.linalg.norm(features, axis=1, keepdims=True)
    for number, name in enumerate(names):
        cosine = features @ features[number]  # one row at a time: no N x N matrix
        cosine[number] = -2  # not itself
        nearest = [i for i in numpy.argsort(-cosine)[: given.count] if cosine[i] >= given.near]
        if nearest:
            print(f"{name}: " + ", ".join(f"{names[i]} {cosine[i]:.3f}" for i in nearest))


if __name__ == "__main__":
    main()
