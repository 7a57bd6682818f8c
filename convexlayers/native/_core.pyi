from numpy import int64
from numpy.typing import NDArray

def info() -> dict[str, str]: ...
def analyze(
    n: int, indptr: NDArray[int64], indices: NDArray[int64]
) -> tuple[NDArray[int64], NDArray[int64], NDArray[int64], NDArray[int64], NDArray[int64], int]: ...
