from rela_cli.api.augment import Augment as Augment
from rela_cli.api.efficient import EfficientDataset as EfficientDataset
from rela_cli.api.efficient import open_folder as open
from rela_cli.api.features import extract as extract
from rela_cli.api.features import probe as probe
from rela_cli.api.maps import Whitening as Whitening
from rela_cli.api.matching import Matching as Matching
from rela_cli.api.runs import Table as Table
from rela_cli.api.runs import TrainedRun as TrainedRun
from rela_cli.api.runs import table as table
from rela_cli.api.runs import train as train
from rela_cli.api.subset import DynamicSubset as DynamicSubset
from rela_cli.config.compose import compose as compose
from rela_cli.config.schema import Config as Config
from rela_cli.errors import RelaError as RelaError
from rela_cli.learners.build import load_backbone as load_backbone
from rela_cli.pipeline.pipeline import run as run

__version__: str
__all__ = [
    "Augment",
    "Config",
    "DynamicSubset",
    "EfficientDataset",
    "Matching",
    "RelaError",
    "Table",
    "TrainedRun",
    "Whitening",
    "__version__",
    "compose",
    "extract",
    "load_backbone",
    "open",
    "probe",
    "run",
    "table",
    "train",
]
