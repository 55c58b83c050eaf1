"""A compressed model trains like any other: transformers' own Trainer, saved and loaded again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from collab_hf import CollabConfig, compress_


class FirstTokenTells(Dataset[dict[str, torch.Tensor]]):
    """Sentences of random tokens whose label is the class of the first one: attention must find it."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.ids = torch.randint(3, 50, (count, 8), generator=generator)
        self.ids[:, 0] = self.ids[:, 0] % 3
        self.labels = self.ids[:, 0].clone()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


@pytest.mark.parametrize(
    "config",
    [
        CollabConfig(method="cp", rank=12),
        CollabConfig(method="tucker", query_rank=12, key_rank=12, score_width=4),
    ],
    ids=["cp", "tucker"],
)
def test_trainer_lowers_the_loss_and_the_result_loads(
    tiny_bert: Any, tmp_path: Path, config: CollabConfig
) -> None:
    model = tiny_bert(BertForSequenceClassification)
    compress_(model, config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if "mixing" in name}
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        logging_steps=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=FirstTokenTells(320))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert all(
        not torch.equal(parameter, before[name])
        for name, parameter in model.named_parameters()
        if "mixing" in name
    )
    trainer.save_model(str(tmp_path / "model"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    batch = {"input_ids": FirstTokenTells(4).ids}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)
