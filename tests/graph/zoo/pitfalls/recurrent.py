"""Recurrent layers with several directions, layers, given states and projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo.architecture import Architecture

from .common import SEQUENCES


class BidirectionalStackedLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(9, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.fc, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.lstm(x)
        return self.head(F.relu(self.fc(outputs)))


class GruStates(nn.Module):
    """Both last states of a bidirectional GRU, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(9, 16, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.gru(x)
        return self.head(torch.cat([state[0], state[1]], -1))


class GivenState(nn.Module):
    """The first states are learnt, one per unit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(9, 16, batch_first=True), nn.Linear(16, 5)
        self.hidden, self.cell = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 1, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = self.hidden.expand(-1, x.shape[0], -1).contiguous(), self.cell.expand(-1, x.shape[0], -1).contiguous()
        return self.head(self.lstm(x, state)[0])


class ProjectedLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(9, 16, proj_size=12, batch_first=True)
        self.fc, self.head = nn.Linear(12, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.fc(self.lstm(x)[0])))


ARCHITECTURES = (
    Architecture("bidirectional_stacked_lstm", "pitfall", BidirectionalStackedLstm, SEQUENCES),
    Architecture("gru_states", "pitfall", GruStates, SEQUENCES),
    Architecture("given_state", "pitfall", GivenState, SEQUENCES),
    Architecture("projected_lstm", "pitfall", ProjectedLstm, SEQUENCES),
)
