"""The chapters that each show one analysis, of training or of all neurons."""

from collections.abc import Callable

from markupsafe import Markup

from analysis.report.drawing.markup import element, fragment
from analysis.report.pages.ablation_page import ablation
from analysis.report.pages.activations_page import activations
from analysis.report.pages.clusters_page import clusters
from analysis.report.pages.comparison.comparison_page import comparison
from analysis.report.pages.data_page import data_page
from analysis.report.pages.faithfulness_page import faithfulness
from analysis.report.pages.influence.influence_page import influence_page
from analysis.report.pages.report_data import ReportData
from analysis.report.pages.training_page import training_page
from analysis.report.pages.website import ReportPage, command_note, data_note


def chapters(data: ReportData) -> list[ReportPage]:
    return [
        training_page(data.run),
        chapter(data, "clusters.html", "Clusters of neurons", "neurons", clusters),
        chapter(data, "ablation.html", "Ablation of neurons", "ablate", ablation),
        chapter(data, "faithfulness.html", "Faithfulness", "faithfulness", faithfulness),
        chapter(data, "activations.html", "Activations", "activations", activations),
        influence_page(data),
        comparison(data),
        data_page(data),
    ]


def chapter(
    data: ReportData, key: str, title: str, job: str, content: Callable[[ReportData], Markup]
) -> ReportPage:
    """A page with the content of one job's tables, or with the command that computes them."""
    missing = data.sources.missing.get(job)
    if missing:
        body = command_note("Not computed. Run:", missing)
    else:
        body = fragment(content(data), data_note([job]))
    return ReportPage(key, title, fragment(element("h1", title), body), key)
