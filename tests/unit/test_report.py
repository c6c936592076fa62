"""The page: that it needs nothing else, says everything, and can be read."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from bench_support import toy_results

from miriam.bench import Results
from miriam.bench.metrics import latency
from miriam.bench.report import render, write
from miriam.bench.report.area import shares
from miriam.bench.report.latency import Row, latency_chart
from miriam.bench.report.plane import Mark, plane_chart
from miriam.bench.report.strip import kernel_label, strip
from miriam.bench.report.svg import log_ticks, rate_text, ticks, time_label, time_text
from miriam.bench.results import Point, Step
from miriam.bench.timeline import Bar, Timeline
from miriam.errors import WorkloadError

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements and their text; complains about elements that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def html() -> str:
    return render(toy_results())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_elements_are_closed_in_order(page: Page) -> None:
    assert page.open == []


def test_nothing_is_asked_of_the_network(html: str, page: Page) -> None:
    assert re.findall(r"(?:https?:)?//[a-z0-9.]+\.[a-z]{2,}", html) == []
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")


def test_it_says_what_was_run_and_on_what(page: Page) -> None:
    results = toy_results()
    for said in ("sim:h200/16", "Simulated device", "0.02 s each", "seed 0", "rates as written", *results.policies):
        assert said in page.text
    for note in results.notes:
        assert note[1:] in page.text
    for workload in results.workloads:
        assert workload.title in page.text
        assert any(attributes.get("id") == f"w-{workload.name}" for _, attributes in page.elements)


def test_every_figure_has_a_title_and_ids_are_unique(html: str, page: Page) -> None:
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    points = [p for p in toy_results().points if p.timeline]
    assert len(charts) == 2 * len(toy_results().workloads) + len(points)
    assert len(re.findall(r'role="img"[^>]*><title>[^<]+</title>', html)) == len(charts)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    labels = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
    assert set(labels) <= set(ids)


def test_every_bar_has_a_row_for_its_tooltip(html: str) -> None:
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    for workload in toy_results().workloads:
        rows = data[workload.name]["bars"]
        assert set(rows) == {"alone", *toy_results().policies}
        section = html.split(f'id="w-{workload.name}"')[1].split("</section>")[0]
        drawn = re.findall(r'data-policy="([^"]+)">(.*?)</figure>', section, re.S)
        assert {policy: len(re.findall(r'class="bar [cne]"', figure)) for policy, figure in drawn} == {
            policy: len(found) for policy, found in rows.items()
        }


def test_names_cannot_break_the_page() -> None:
    evil = '</script><script>alert("x")</script><b>&amp;'
    results = toy_results()
    workload = replace(results.workloads[0], title=evil)
    steps = {model: tuple(replace(s, kernel=evil) for s in found) for model, found in results.programs.items()}
    spoilt = replace(
        results,
        notes=(evil,),
        device=f"sim:{evil}",
        workloads=(workload,),
        programs=steps,
        points=tuple(p for p in results.points if p.workload == workload.name),
    )
    page = Page(render(spoilt))
    assert page.open == []
    assert evil in page.text
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not any("alert" in script for script in page.scripts[1:])


def test_a_device_that_is_none_is_called_measured() -> None:
    assert "Measured on hardware" in Page(render(replace(toy_results(), simulated=False, notes=()))).text


def test_nothing_finished_gives_a_page_all_the_same() -> None:
    results = toy_results()
    points = tuple(
        replace(
            p,
            tasks=tuple(replace(t, response=None, service=None, slowdown=None) for t in p.tasks),
            timeline=None,
            overall_vs_sequential=None,
        )
        for p in results.points
    )
    page = Page(render(replace(results, points=points)))
    assert page.open == []
    assert "No critical request finished" in page.text


def test_a_policy_that_finishes_no_critical_request_has_no_mean_at_a_glance() -> None:
    results = toy_results()

    def starved(point: Point) -> Point:
        if point.policy != "miriam" or point.workload != "Y":
            return point
        quick, *others = point.tasks
        quick = replace(quick, response=None, service=None, slowdown=None, unfinished=quick.arrived)
        return replace(point, tasks=(quick, *others))

    html = render(replace(results, points=tuple(map(starved, results.points))))
    assert "none finished <small>Y</small>" in html
    assert "Under miriam the critical task" not in html
    assert "none finished" not in render(results)


def test_one_workload_one_policy_and_an_unknown_one() -> None:
    results = toy_results()
    points = tuple(
        replace(p, policy="new-one") if p.alone is None else p
        for p in results.points
        if p.workload == "Y" and (p.alone or p.policy == "miriam")
    )
    page = Page(render(replace(results, policies=("new-one",), workloads=results.workloads[1:2], points=points)))
    assert "1 workload, 1 policy" in page.text
    assert any("p-other0" in (a.get("class") or "") for _, a in page.elements)


def test_files_are_written_where_asked(tmp_path: Path) -> None:
    file = write(toy_results(), tmp_path / "a" / "b")
    assert file == tmp_path / "a" / "b" / "index.html"
    assert file.read_text("utf-8") == render(toy_results())
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkloadError, match="cannot write the report"):
        write(toy_results(), tmp_path / "file")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_enough_contrast(theme: int) -> None:
    """WCAG 2.2, level AA: 4.5 to 1 for text, 3 to 1 for shapes."""
    css = resources.files("miriam.bench.report").joinpath("style.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if theme:
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(colours[a]), luminance(colours[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    policies = (
        "sequential",
        "multistream",
        "priority",
        "barrier",
        "miriam",
        "other0",
        "other1",
        "other2",
        "other3",
        "other4",
    )
    for ink, back in product(("ink", "soft"), ("back", "card", "head")):
        assert contrast(ink, back) >= 4.5, (ink, back)
    for ink, back in (("ink", "note"), ("c-ink", "c"), ("n-deep", "card"), ("miriam", "card"), ("c", "card")):
        assert contrast(ink, back) >= 4.5, (ink, back)
    for ink, back in product((*policies, "c"), ("card", "free")):
        assert contrast(ink, back) >= 3, (ink, back)


def timeline(bars: tuple[Bar, ...], resident: tuple[tuple[float, ...], ...], lanes: tuple[str, ...]) -> Timeline:
    times = tuple(10.0 * i for i in range(len(resident[0])))
    return Timeline(0.0, 10.0 * len(resident[0]), 1000, lanes, ("urgent", "other"), (), bars, times, resident)


def kind_of(bar: Bar) -> str:
    return "c" if bar.task == 0 else "n" if bar.workers is None else "e"


def test_threads_of_a_lane_belong_to_the_run_that_holds_it() -> None:
    bars = (
        Bar(0, 0, 1, 0, 0.0, 10.0, 4, None, None, None),
        Bar(0, 1, 2, 0, 10.0, 20.0, 4, None, None, None),
        Bar(0, 1, 2, 1, 20.0, 30.0, 4, 0, 4, None),
        Bar(1, 1, 3, 0, 0.0, 30.0, 4, 0, 4, None),
    )
    found = shares(timeline(bars, ((100.0, 200.0, 300.0), (50.0, 50.0, 0.0)), ("all", "more")), kind_of)
    np.testing.assert_allclose(found, [[0.1, 0, 0], [0.05, 0.05, 0.3], [0, 0.2, 0]])


def test_shares_of_a_real_run_add_up_to_what_is_resident() -> None:
    for point in toy_results().points:
        if point.timeline is not None:
            t = point.timeline
            urgent = [name == "quick" for name in t.tasks]
            found = shares(t, lambda b, urgent=urgent: "c" if urgent[b.task] else kind_of(b))  # type: ignore[misc]
            held = np.array([lane for i, lane in enumerate(t.resident) if any(b.lane == i for b in t.bars)])
            np.testing.assert_allclose(found.sum(axis=0), held.sum(axis=0) / t.capacity, atol=1e-12)
            assert found.sum(axis=0).max() <= 1 + 1e-9


def test_bars_that_overlap_get_rows_of_their_own() -> None:
    bars = tuple(Bar(i, 1, 1, i, 5.0 * i, 5.0 * i + 12, 4, 0, 4, None) for i in range(4))
    drawn = strip(timeline(bars, ((0.0,) * 4,) * 4, ("a", "b", "c", "d")), lambda name: name == "urgent",
                  lambda name: [Step("triton_poi_fused_relu_0", 8, 128)] * 4, "t").svg  # fmt: skip
    rows = re.findall(r'<rect x="[\d.]+" y="([\d.]+)"[^>]*class="bar e"', drawn)
    assert len(rows) == 4
    assert rows[0] == rows[3]
    assert len(set(rows)) == 3


@pytest.mark.parametrize(
    ("kernel", "label"),
    [
        ("triton_tem_fused_convolution_relu_7", "conv"),
        ("triton_poi_fused_max_pool2d_with_indices_3", "pool"),
        ("triton_tem_fused_addmm_12", "matmul"),
        ("triton_tem_fused_mm_t_0", "matmul"),
        ("triton_poi_fused__to_copy_1", "copy"),
        ("triton_red_fused_native_layer_norm_2", "norm"),
        ("triton_poi_fused_mul_9", "mul"),
        ("sm90_xmma_gemm_f16f16", "sm90_xmma_"),
    ],
)
def test_kernels_get_short_labels(kernel: str, label: str) -> None:
    assert kernel_label(kernel) == label


def test_the_plane_moves_labels_out_of_each_others_way() -> None:
    drawn = plane_chart([Mark(f"policy{i}", "other0", 1.0, 1.5) for i in range(4)], "t")
    places = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="label"', drawn)
    assert len(places) == len(set(places)) == 4


def test_charts_hold_extreme_values() -> None:
    wide = [Row("a", "alone", latency([1.0]), None), Row("b", "miriam", latency([5e7]), 5e7)]  # type: ignore[arg-type]
    assert "nan" not in latency_chart(wide, "t")
    assert "nan" not in plane_chart([Mark("p", "miriam", 40.0, 3000.0), Mark("q", "barrier", 0.01, 0.5)], "t")


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(3, 3, 5) == [3]
    assert log_ticks(1, 10) == [1, 2, 3, 5, 10]
    assert log_ticks(1, 1e5) == [10.0**e for e in range(6)]
    for low, high in ((1, 2), (0.9, 40), (1, 1e7), (130, 177)):
        found = log_ticks(low, high)
        assert found
        assert all(low <= t <= high for t in found)
        assert found == sorted(set(found))


def test_numbers_are_written_for_people() -> None:
    assert [time_text(v) for v in (0.5, 12.34, 358.2, 1194, 98765, 2.5e6)] == [
        "0.500 µs", "12.3 µs", "358 µs", "1.19 ms", "98.8 ms", "2.50 s",
    ]  # fmt: skip
    assert [time_label(500, 4000), time_label(0, 800), time_label(250)] == ["0.5 ms", "0 µs", "250 µs"]
    assert [rate_text(v) for v in (9.96, 254.4, 12345.6)] == ["10.0", "254", "12,346"]


def test_results_without_any_timeline_have_no_timeline_card() -> None:
    results: Results = toy_results()
    bare = replace(results, points=tuple(replace(p, timeline=None) for p in results.points))
    assert "What the device did" not in Page(render(bare)).text
