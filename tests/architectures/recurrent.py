"""Small recurrent networks over features [batch, sequence, 12] or token ids [batch, sequence]."""

from __future__ import annotations

from torch import Tensor, nn

VOCABULARY = 53


class Lstm(nn.Module):
    """Two stacked LSTM layers; the last step is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(12, 32, num_layers=2, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class BidirectionalGru(nn.Module):
    """Token ids -> embedding -> two bidirectional GRU layers -> a label for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 24)
        self.gru = nn.GRU(24, 24, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


class ElmanRnn(nn.Module):
    """A plain tanh RNN whose last hidden state feeds an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(12, 48, batch_first=True)
        self.head = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][0])
