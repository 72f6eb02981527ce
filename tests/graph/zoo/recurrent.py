"""Recurrent networks."""

from __future__ import annotations

import torch
from torch import nn

from .architecture import Architecture, arguments, floats, integers


class LstmClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.lstm = nn.LSTM(12, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.lstm(self.embed(tokens))
        return self.head(outputs[:, -1])


class GruClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.gru = nn.GRU(12, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.gru(self.embed(tokens))
        return self.head(outputs.mean(1))


class BidirectionalLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.lstm = nn.LSTM(12, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.lstm(self.embed(tokens))
        return self.head(outputs)


class StackedGru(nn.Module):
    """Two layers, time first; the classifier reads the last state of the upper one."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Linear(9, 12)
        self.gru = nn.GRU(12, 16, num_layers=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.gru(self.reduce(x))
        return self.head(state[-1])


class EncoderDecoder(nn.Module):
    """The last state of one LSTM starts another."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(50, 12), nn.Embedding(60, 14)
        self.encoder = nn.LSTM(12, 16, batch_first=True)
        self.decoder = nn.LSTM(14, 16, batch_first=True)
        self.head = nn.Linear(16, 60)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(self.source(source))
        outputs, _ = self.decoder(self.target(target), state)
        return self.head(outputs)


class ElmanNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(9, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.rnn(x)
        return self.head(outputs.amax(1))


class UnrolledCell(nn.Module):
    """A GRU cell in a Python loop, its state starting from zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(9, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(x.shape[0], 16)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


TOKENS = arguments(integers(50, 2, 11))

ARCHITECTURES = (
    Architecture("lstm", "recurrent", LstmClassifier, TOKENS),
    Architecture("gru", "recurrent", GruClassifier, TOKENS),
    Architecture("bidirectional_lstm", "recurrent", BidirectionalLstm, TOKENS),
    Architecture("stacked_gru", "recurrent", StackedGru, arguments(floats(7, 2, 9))),
    Architecture("lstm_encoder_decoder", "recurrent", EncoderDecoder, arguments(integers(50, 2, 11), integers(60, 2, 7))),
    Architecture("elman_network", "recurrent", ElmanNetwork, arguments(floats(2, 7, 9))),
    Architecture("unrolled_gru_cell", "recurrent", UnrolledCell, arguments(floats(2, 3, 9))),
)
