"""A network as the file that serves it: ONNX Runtime alone computes what it answers.

`vision.export` writes the file, and it says all that a picture needs on its way to an answer: how
it becomes pixels, what it is normalised with, the names of the classes.
"""

import json
import time

import numpy as np
import numpy.typing as npt

from vision.export import METADATA_KEY, BadExport
from vision.images import Pixels
from vision.plan import Geometry

WARM_UP = 3


class Served:
    """A network for serving; threads that ask it at the same time do not wait for each other.

    class_names: in the order of its answers. geometry: how a picture becomes its pixels. Raises
    `BadExport` for bytes that are no file of ours.
    """

    def __init__(self, body: bytes, threads: int) -> None:
        """threads: how many compute one call together."""
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # waiting threads give the processor to those that decode
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                body, options, providers=["CPUExecutionProvider"]
            )
            told = self._session.get_modelmeta().custom_metadata_map[METADATA_KEY]
            facts = json.loads(told)
            self.class_names = tuple(facts["class_names"])
            self.geometry = Geometry(**facts["geometry"])
        except Exception as error:  # the library raises what it likes, over many lines
            line = " ".join(str(error).split())[:200]
            raise BadExport(f"no file of ours for serving ({line}): write it anew") from error

    def logits(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """What the network says of stored pixels uint8 [n, side, side, 3], float32 [n, classes]."""
        outputs: npt.NDArray[np.float32] = self._session.run(["logits"], {"pixels": pixels})[0]
        return outputs

    def shares(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Confidences float32 [n, classes] of stored pixels; raises `BadExport` for no numbers."""
        logits = self.logits(pixels)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: npt.NDArray[np.float32] = raised / raised.sum(axis=1, keepdims=True)
        if not np.isfinite(shares).all():
            raise BadExport("its answers are not numbers: roll back to another version")
        return shares

    def warm(self, most: int) -> None:
        """Answer noise, alone and `most` together: what the first client would wait for is done."""
        for count in (1, most):
            self.shares(self._noise(count))

    def latency(self, repeats: int = 20) -> float:
        """Median seconds for the pixels of one picture alone, after some to warm up."""
        pixels, seconds = self._noise(1), []
        for _ in range(WARM_UP + repeats):
            begun = time.perf_counter()
            self.shares(pixels)
            seconds.append(time.perf_counter() - begun)
        return float(np.median(seconds[WARM_UP:]))

    def _noise(self, count: int) -> Pixels:
        side = self.geometry.side
        drawn = np.random.default_rng(0)
        return drawn.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def best(
    shares: npt.NDArray[np.float32], top: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The columns and confidences of the `top` largest of [classes], best first.

    Equal ones stand in the order of the classes.
    """
    columns = np.argsort(-shares, kind="stable")[:top]
    return columns, shares[columns]
