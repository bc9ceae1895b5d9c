"""Python for a process that dies when it imports torch or one of the large libraries around it."""

NO_TORCH = """
import importlib.abc, sys
class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "open_clip", "lightly"):
            raise RuntimeError(f"{name} was imported")
sys.meta_path.insert(0, NoTorch())
"""
