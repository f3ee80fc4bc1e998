"""Many comparisons at once: of twenty recipes that change nothing, one differs "with 95 % certainty" by chance."""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 0.05 they bound the chance of any false claim by 5 %.

    Holds whatever the comparisons have in common (Holm 1979). Raises ValueError for what is no p-value.
    """
    if bad := [value for value in p_values if not 0 <= value <= 1]:
        raise ValueError(f"{bad[0]} is no p-value")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
