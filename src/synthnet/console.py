"""The library that figures are drawn with, an extra."""

from synthnet.errors import missing_extra


def figure_library():
    """matplotlib and its pyplot, without a display. Raises: InputError where it is missing."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    return mpl, plt
