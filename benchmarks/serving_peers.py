"""What `benchmarks.serving` compares with: a bare FastAPI endpoint with PyTorch, and LitServe.

    python -m benchmarks.serving_peers bare PORT CHECKPOINT
    python -m benchmarks.serving_peers litserve PORT CHECKPOINT

Both answer the same checkpoint with the same preparation of a picture (Pillow: the shorter side
resized, the centre cut out), by PyTorch as it comes, and give the five best classes. Neither checks
a picture, bounds a body, logs, or follows anything.
"""

import io
import os
import sys
from pathlib import Path
from typing import Any

import litserve as ls
import numpy as np
import torch
from fastapi import Request
from PIL import Image

BEST = 5
BATCH = 8
LINGER_SECONDS = 0.002


class Network:
    """A checkpoint and how a picture becomes what it takes."""

    def __init__(self, checkpoint: Path) -> None:
        from vision.network import load, normalisation

        loaded = load(checkpoint)
        self.network = loaded.network.eval().to(memory_format=torch.channels_last)
        self.names, self.geometry = loaded.class_names, loaded.plan.geometry
        mean, std = normalisation(loaded.network, loaded.plan)
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def pixels(self, body: bytes) -> torch.Tensor:
        """One picture, float32 [3, size, size]."""
        with Image.open(io.BytesIO(body)) as opened:
            picture = opened.convert("RGB")
        share = self.geometry.side / min(picture.size)
        picture = picture.resize((round(picture.width * share), round(picture.height * share)))
        size = self.geometry.image_size
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        whole = torch.from_numpy(np.array(picture.crop((left, top, left + size, top + size))))
        return (whole.permute(2, 0, 1).float() / 255 - self.mean) / self.std

    def answers(self, batch: torch.Tensor) -> list[list[dict[str, Any]]]:
        """The best classes of each picture of a batch."""
        with torch.inference_mode():
            shares = self.network(batch.contiguous(memory_format=torch.channels_last)).softmax(1)
        best, columns = shares.topk(BEST)
        return [
            [{"label": self.names[column], "confidence": share}
             for share, column in zip(*row, strict=True)]
            for row in zip(best.tolist(), columns.tolist(), strict=True)
        ]  # fmt: skip


def bare(port: int, checkpoint: Path) -> None:
    """As a first tutorial has it: one picture at a time, in a thread of the server's pool."""
    import uvicorn
    from fastapi import FastAPI, UploadFile

    found, app = Network(checkpoint), FastAPI()

    @app.post("/predict")
    def predict(image: UploadFile) -> list[dict[str, Any]]:
        return found.answers(found.pixels(image.file.read())[None])[0]

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


class Api(ls.LitAPI):  # type: ignore[misc]
    """LitServe's own batching over the same network; each worker computes on one core."""

    checkpoint: Path

    def setup(self, device: str) -> None:
        """Load the network in a worker."""
        torch.set_num_threads(1)
        self.found = Network(self.checkpoint)

    def decode_request(self, request: Request) -> torch.Tensor:
        """The picture of a form, which comes in the request's place where this says `Request`."""
        return self.found.pixels(request["image"].file.read())

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Pictures that came together."""
        return torch.stack(inputs)

    def predict(self, batch: torch.Tensor) -> list[list[dict[str, Any]]]:
        """Their answers."""
        return self.found.answers(batch)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Each one's own."""
        return output

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        """As JSON."""
        return {"top": output}


def litserve(port: int, checkpoint: Path) -> None:
    """By its own batching, in a worker for each core."""
    api = Api(max_batch_size=BATCH, batch_timeout=LINGER_SECONDS)
    api.checkpoint = checkpoint
    ls.LitServer(api, accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0))).run(
        host="127.0.0.1", port=port, log_level="warning", generate_client_file=False
    )


if __name__ == "__main__":
    {"bare": bare, "litserve": litserve}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
