"""python -m jobs.whole_run RECIPE: the whole procedure, top to bottom. A finished stage is skipped and says `cached`."""

from jobs.model import adopt
from jobs.publish import publish
from jobs.report import recorded, report
from jobs.run import Run, main
from jobs.serve import serve
from jobs.study import check_room, study
from jobs.track import ship


def whole_run(run: Run) -> None:
    with recorded(run):  # on a cluster that grows: which nodes there were, for the report
        procedure(run)


def procedure(run: Run) -> None:
    check_room(run)  # a training that the cluster can never hold is refused before anything is made for it
    adopt(run)  # base model -> verified weights and tokenizer
    run.make("exams")  # questions -> checked, distinct items that are never trained on
    run.make("corpus")  # raw text -> cleaned, licensed, distinct documents
    run.make("duplicates")  # documents of all sources -> which ones say what another one says already
    run.make("tokens")  # documents -> packed, shuffled rows, and held-out documents
    run.make("instructions")  # questions, abstracts, graphs, documents -> conversations, without what an exam asks
    run.make("overlap")  # documents -> those that hold an exam item
    run.make("withheld")  # -> the rows they stand in, which are not trained on
    run.make("chats")  # conversations, none about a held-out document -> packed rows, of which the answers are trained
    run.make("probes")  # rows that will be trained on -> facts to ask about, and twins
    study(run)  # each variant: knowledge injection, instruction tuning, measured on every item
    ship(run)  # -> measurements that MLflow missed while it was away
    run.make("verdict")  # all items of all variants -> differences with intervals, and the gate
    report(run)  # -> the table, and one HTML page
    publish(run)  # the gate's winner -> registry, under the alias
    serve(run)  # alias -> HTTP


if __name__ == "__main__":
    main(whole_run)
