"""Images: the embedded `shapes`, CIFAR-10, your own arrays, and batches of them."""

from .augment import Augment
from .load import Data, load_data
from .split import Batch, Split, batches, batches_per_epoch

__all__ = ["Augment", "Batch", "Data", "Split", "batches", "batches_per_epoch", "load_data"]
