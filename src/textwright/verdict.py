"""What the curves say, in plain words."""

from __future__ import annotations

from textwright.training.records import Progress

SMALL = 0.01  # share of the loss below which a change does not count


def verdict(progress: Progress, *, unit: str = "token", comparable: bool = True) -> str:
    """Still learning, fitted, over-fitted or made worse, and by how much.

    Args:
        unit: what a loss is a mean over.
        comparable: the training loss is the same measure as the validation loss. It is not where texts are cut into
            other tokens in training (BPE dropout), or where the model reads its own guesses (scheduled sampling).
    """
    fitted = next((look.calibration for look in progress.evaluations if look.step == progress.best_step), None)
    told = _judged(progress, unit, comparable)
    return told if fitted is None else f"{told} The weights that are kept are calibrated: {fitted}."


def _judged(progress: Progress, unit: str, comparable: bool) -> str:
    looks = [record for record in progress.evaluations if record.train_loss is not None]
    if len(looks) < 2:
        return "Too short to tell: there were fewer than two evaluations after training began."
    # The rate falls towards the end, and with it every gain: the last look alone would always seem settled.
    last, before = looks[-1], next(look for look in reversed(looks[:-1]) if look.share < 0.7 or look is looks[0])
    assert last.train_loss is not None
    best = min(looks, key=lambda record: record.valid_loss)
    gap = last.valid_loss - last.train_loss
    first = progress.evaluations[0]
    if progress.best_step == 0 and first.valid_loss < best.valid_loss:
        return (
            f"Training did harm: the validation loss was {first.valid_loss:.3f} nats a {unit} before it and never "
            f"better than {best.valid_loss:.3f} since; the weights it began with are kept. A lower rate would help: "
            f"--set training.optimizer.learning_rate=…"
        )
    apart = f"validation loss {last.valid_loss:.3f}"
    apart += f" against {last.train_loss:.3f} on the training text" if comparable else ""
    if last.valid_loss > best.valid_loss * (1 + SMALL):
        kept = "the best weights are kept"
        if progress.best_step != best.step:  # the task's score decided
            kept = f"the weights of step {progress.best_step:,}, which scored best, are kept"
        return (
            f"Over-fitted: the validation loss was best at step {best.step:,} ({best.valid_loss:.3f} nats a {unit}) "
            f"and has risen by {last.valid_loss - best.valid_loss:.3f} since; {kept}. More text, "
            f"more dropout or a smaller model would help; more time would not."
        )
    gained = before.valid_loss - last.valid_loss
    if gained > SMALL * last.valid_loss:
        when = "the last third of the budget" if last.share >= 1 else f"what came after step {before.step:,}"
        return (
            f"Still learning: {when} lowered the validation loss by {gained:.3f} nats ({apart}). More time would help."
        )
    if comparable and gap > 0.1 * last.valid_loss:
        return (
            f"Fitted, with a gap of {gap:.3f} nats ({apart}): the model begins to know its text by heart. More text or "
            f"more dropout would help more than more time."
        )
    return f"Fitted: the validation loss has settled ({apart}). A larger model could learn more from this text."
