"""The first page leads to the pages on the course of training, or says how to make them."""

from report_pages import Reader, build, contents
from report_run import report_run

import ontogeny
from analysis.report.build import INDEX
from analysis.run.run import open_run

URI = "memory://report-course"


def test_the_first_page_leads_to_pages_on_the_course_of_training() -> None:
    run = report_run(URI, "attribute")
    config = ontogeny.TrajectoryConfig(metrics=("weight_norm",))
    ontogeny.trajectory(run, config, save=True, name="dense")
    build(run, max_neurons=1)
    page = Reader(contents(f"{URI}/report")[INDEX].decode())
    (link,) = [a["href"] for a in page.of("a") if "analysis" in (a["href"] or "")]
    assert link == "../analysis/trajectory/dense/index.html"
    assert open_run(URI).store.exists(link.removeprefix("../"))
    assert 'trajectory metrics=["weight_norm"]' in page.text
    assert f"; {run.steps_done} steps" in page.text
    assert f"ontogeny spectrum {URI}" in page.text
    assert f"ontogeny trajectory {URI}" not in page.text

    build(run, "memory://report-course-elsewhere", max_neurons=1)
    page = Reader(contents("memory://report-course-elsewhere")[INDEX].decode())
    assert [a for a in page.of("a") if "analysis" in (a["href"] or "")] == []
    assert f"{URI}/analysis/trajectory/dense/index.html" in page.text
