"""Reads all of a folder's weights, and tells whether they can be what was published."""

from dataclasses import dataclass

from mlx_llama4.checkpoint.arrays import fits
from mlx_llama4.checkpoint.open import Source
from mlx_llama4.checkpoint.sources import BLOCK_BYTES
from mlx_llama4.checkpoint.zeros import WatchedCheckpoint
from mlx_llama4.files.dtypes import FLOATS
from mlx_llama4.hub.sums import WrongSumError, check_sum

MLX_NAMES = {stored: name for name, stored in FLOATS.items()}


@dataclass(frozen=True)
class Verification:
    """What reading all weights found."""

    files: int
    verified_files: int  # have the SHA-256 that the hub has of them
    wrong: tuple[str, ...]  # a line for each file that has another
    not_finite: tuple[str, ...]  # tensors with NaN or infinity
    # Tensors of files whose sums are not known → how many of their rows are zero throughout.
    zero_rows: dict[str, int]

    @property
    def right(self) -> bool:
        """Is nothing known to be wrong? Rows of zeros may be padding."""
        return not self.wrong and not self.not_finite


def verify(source: Source) -> Verification:
    """Raises RunError for a file that cannot be read."""
    files = source.checkpoint.files
    verified, wrong = set(), []
    watched = WatchedCheckpoint(source.checkpoint.folder, source.checkpoint.tensors)
    not_finite = []
    for file in files:
        try:
            if check_sum(file):
                verified.add(file)
                continue
        except WrongSumError as error:
            wrong.append(str(error))
            continue
        for tensor in source.checkpoint.tensors.values():
            if tensor.file != file or not tensor.nbytes:
                continue
            rows = tensor.shape[0] if tensor.shape else 1
            step = max(1, BLOCK_BYTES * rows // tensor.nbytes)
            for start in range(0, rows, step):
                data = watched.read(tensor, start, min(start + step, rows))
                name = MLX_NAMES.get(tensor.dtype)
                if name is not None and not fits(data, tensor.dtype, name):
                    not_finite.append(tensor.name)
                    break
    return Verification(
        len(files), len(verified), tuple(wrong), tuple(not_finite), watched.zero_rows
    )
