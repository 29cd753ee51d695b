"""python -m jobs.track RECIPE: ship to MLflow what it missed of finished trainings; what it has is not sent again."""

from jobs.run import Run, main
from jobs.study import makers_of, open_study_run, stages_of, trial_run
from medschool import storage, track
from medschool.procedure import trials
from medschool.train.course import JOURNAL


def ship(run: Run) -> None:
    """Every journal that lies in the store, to the run of the trial that made it. An MLflow that is away is left alone."""
    parent, sent = open_study_run(run), 0
    if parent is None:
        return
    try:
        for trial in trials(run.recipe):
            tracked, names = trial_run(run, trial, parent), stages_of(run.recipe, trial)
            for name in names:
                made = run.find(name)
                if made and name.startswith(("pretrain/", "instruct/")) and makers_of(run.recipe, name)[0] == trial.name:
                    sent += track.replay(tracked, storage.read_bytes(made.uri(JOURNAL)), f"{name.split('/')[0]}/")
            if all(run.find(name) for name in names):
                track.close_run(tracked, "FINISHED")
    except Exception as error:
        run.say(f"track: MLflow does not answer ({type(error).__name__}); run `python -m jobs.track` once it does")
        return
    track.close_run(parent, "FINISHED")
    if sent:
        run.say(f"track: {sent} steps that MLflow had missed")


if __name__ == "__main__":
    main(ship)
