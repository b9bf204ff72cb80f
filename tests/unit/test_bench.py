"""The pure parts of the benchmark: scenarios, data of /proc, medians, tables. Its measurements are not tested here."""

from __future__ import annotations

import json
import os
import re
from configparser import ConfigParser
from statistics import median

from twisted.trial.unittest import SynchronousTestCase

from bench import __main__, measure, proc, report
from bench.measure import Figures, Result
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import BENCH, SERVERS
from tests.support import ROOT

COST = Scenario("cost", "a *title*", "cost", ("node", "chatrelay"), (64,), in_flight=8)


def run(cost: float = 10.0, busy: float = 0.95, latencies: tuple[float, ...] = ()) -> Figures:
    """Return the figures of one run."""
    return Figures(cost, busy, load_busy=0.5, per_second=1000.0, latencies=latencies)


class Proc(SynchronousTestCase):
    """Data of Linux."""

    def test_cpu_ticks_are_read_after_any_program_name(self) -> None:
        stat = "42 (a) R (b c) S 1 42 42 0 -1 4194304 100 0 0 0 7 5 3 2 20 0 9 0 100 1000 10\n"
        self.assertEqual(proc.cpu_ticks(stat), 7 + 5 + 3 + 2)

    def test_running_process_has_time_and_memory(self) -> None:
        self.assertGreater(proc.cpu_seconds_of([os.getpid()]), 0)
        self.assertGreater(proc.resident_kib_of([os.getpid()]), 1000)
        self.assertEqual(proc.process_and_descendants(os.getpid())[0], os.getpid())

    def test_resident_memory_is_read_in_kib(self) -> None:
        self.assertEqual(proc.resident_kib("Name:\tx\nVmHWM:\t  99 kB\nVmRSS:\t  1234 kB\n"), 1234)
        self.assertRaises(ValueError, proc.resident_kib, "Name:\tzombie\n")

    def test_name_of_the_first_processor_is_read(self) -> None:
        self.assertEqual(proc.cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"), "Some CPU @ 2 GHz")
        self.assertEqual(proc.cpu_model(""), "unknown")

    def test_time_of_calls_is_positive(self) -> None:
        self.assertGreater(proc.call_milliseconds(calls=10_000, times=1), 0)

    def test_sync_times_are_shown_in_words(self) -> None:
        self.assertEqual(proc.describe_sync([0.001, 0.002, 0.004]), "median 2.00 ms, p99 4.00 ms")


class Data(SynchronousTestCase):
    """Scenarios and servers."""

    def test_each_scenario_names_known_servers(self) -> None:
        for scenario in SCENARIOS:
            self.assertEqual({*scenario.servers, *scenario.quick_servers} - set(SERVERS), set(), scenario.name)
            self.assertEqual(len(set(scenario.servers)), len(scenario.servers))
            self.assertEqual(bool(scenario.quick_servers), scenario.quick)

    def test_each_number_of_connections_is_even(self) -> None:
        for scenario in SCENARIOS:
            self.assertEqual([count % 2 for count in scenario.connections], [0] * len(scenario.connections))

    def test_names_of_scenarios_are_unique(self) -> None:
        self.assertEqual(len({scenario.name for scenario in SCENARIOS}), len(SCENARIOS))
        self.assertEqual(len({server.title for server in SERVERS.values()}), len(SERVERS))

    def test_each_server_has_remarks(self) -> None:
        self.assertEqual([name for name, server in SERVERS.items() if not server.remarks], [])

    def test_quick_run_has_two_scenarios(self) -> None:
        arguments = __main__.options().parse_args(["--quick"])
        scenarios = __main__.chosen(arguments)
        self.assertEqual([scenario.name for scenario in scenarios], ["64x8", "64x8-log"])
        seconds = sum(len(scenario.servers) * (scenario.warm_up + scenario.window + 3) for scenario in scenarios) * 2
        self.assertLess(seconds, 120)

    def test_command_line_chooses_scenarios_and_servers(self) -> None:
        chosen = __main__.chosen(
            __main__.options().parse_args(["--scenario", "64x8", "--peer", "bun", "--window", "1"])
        )
        self.assertEqual(
            [(scenario.name, scenario.servers, scenario.window) for scenario in chosen], [("64x8", ("bun",), 1)]
        )


class Pins(SynchronousTestCase):
    """Pinned versions of the peers."""

    pins = (BENCH / "requirements.txt").read_text()

    def test_each_python_package_is_pinned(self) -> None:
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg")
        wanted = re.findall(r"^([\w-]+) >=", setup["options.extras_require"]["bench"], re.MULTILINE)
        pinned = re.findall(r"^([\w-]+) == [\d.]+$", self.pins, re.MULTILINE)
        self.assertTrue(wanted)
        self.assertEqual(set(wanted) - set(pinned), set())

    def test_each_npm_package_is_pinned_and_locked(self) -> None:
        wanted = json.loads((BENCH / "package.json").read_text())["dependencies"]
        text = (BENCH / "package-lock.json").read_text()
        locked = json.loads(text)["packages"]
        self.assertEqual({name: locked[f"node_modules/{name}"]["version"] for name in wanted}, wanted)
        # Whichever registry a machine uses, what it gives is checked by its hash.
        self.assertNotIn("://", text)
        self.assertNotIn("resolved", text)


class Medians(SynchronousTestCase):
    """Medians of the rounds."""

    def test_median_is_taken_of_each_figure(self) -> None:
        middle = measure.middle((run(3, 0.9, (1, 5)), run(1, 0.8, (2, 4)), run(2, 1.0, (3, 9))))
        self.assertEqual((middle.cost, middle.busy, middle.latencies), (2, 0.9, (2, 5)))

    def test_median_of_two_rounds_is_their_mean(self) -> None:
        self.assertEqual(measure.middle((run(1), run(2))).cost, median([1, 2]))

    def test_figures_are_read_from_the_load_generator(self) -> None:
        sample = {"seconds": 2.0, "messages": 1000, "deliveries": 1000, "cpu": 1.9, "load_cpu": 1.0}
        found = measure.figures({**sample, "kib_per_connection": 0.0, "late": 0.0, "latencies": []})
        self.assertAlmostEqual(found.cost, 1900)
        self.assertEqual((found.busy, found.load_busy, found.per_second), (0.95, 0.5, 500))


class Tables(SynchronousTestCase):
    """Results as tables and JSON."""

    results = (
        Result("cost", "chatrelay", "chatrelay 1", 64, (run(8), run(10), run(12))),
        Result("cost", "node", "ws 8", 64, (run(20, 0.5),)),
        Result("another", "node", "ws 8", 64, (run(1),)),
    )

    def test_rows_are_in_the_scenarios_order_with_the_ratio(self) -> None:
        table = report.table(COST, self.results)
        self.assertEqual([row[0] for row in table.rows], ["Node ws", "chatrelay"])
        self.assertEqual(table.rows[0][2:7], ("20.0", "20.0 to 20.0", "50%", "1,000", "2.00"))
        self.assertEqual(table.rows[1][2:7], ("10.0", "8.0 to 12.0", "95%", "1,000", "1.00"))

    def test_server_that_was_not_saturated_is_noted(self) -> None:
        (note,) = report.table(COST, self.results).notes
        self.assertTrue(note.startswith("Node ws was not saturated: it used 50% of its core"), note)

    def test_plain_table_is_aligned(self) -> None:
        table = report.Table("title", ("a", "long"), (("x", "1"), ("yyy", "22")), ("a note",))
        self.assertEqual(table.plain(), "title\n\na    long\nx       1\nyyy    22\n  a note\n")

    def test_rst_table_escapes_markup_in_values(self) -> None:
        table = report.Table("a *title*", ("a", "b", "c"), (("x_", "1", ""),))
        self.assertEqual(
            table.rst(),
            ".. list-table::\n   :header-rows: 1\n\n   * - a\n\n       b\n     - c\n   * - x\\_\n\n       1\n     -\n",
        )

    def test_growth_table_has_a_column_for_each_number_of_connections(self) -> None:
        scenario = Scenario("growth", "growth", "growth", ("node", "chatrelay"), (100, 1000), rate=1)
        results = [Result("growth", "chatrelay", "1", count, (run(count / 10),)) for count in (1000, 100)]
        table = report.table(scenario, results)
        self.assertEqual(table.rows, (("chatrelay", "1", "10.0", "100", "10.00"),))

    def test_latency_table_is_in_milliseconds(self) -> None:
        scenario = Scenario("latency", "latency", "latency", ("node",), (200,), rate=1)
        latencies = tuple(number / 1000 for number in range(1001))
        table = report.table(scenario, [Result("latency", "node", "8", 200, (run(latencies=latencies),))])
        self.assertEqual(table.rows[0][2:7], ("500.00", "900.00", "990.00", "999.00", "1000.00"))

    def test_results_survive_json(self) -> None:
        document = report.as_json({"CPU": "some"}, "python -m bench", self.results, {"bun": "missing"})
        self.assertEqual(report.from_json(json.loads(json.dumps(document))), list(self.results))

    def test_page_has_machine_command_tables_and_missing_servers(self) -> None:
        tables = [(report.table(COST, self.results), "cost.svg")]
        text = report.page({"CPU": "some_cpu"}, "python -m bench --x", tables, {"bun": "no npm"}, "benchmarks")
        for said in (
            "- CPU: some\\_cpu",
            "``python -m bench --x``",
            "- without Bun: no npm",
            ".. image:: benchmarks/cost.svg",
            ".. list-table::\n   :header-rows: 1\n",
            "A \\*title\\*\n-----------\n",
        ):
            self.assertIn(said, text)
