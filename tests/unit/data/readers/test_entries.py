"""Entries hold what a slow reader reads, whatever is kept of them."""

from __future__ import annotations

import csv
import random

import numpy as np
import pyarrow
import pyarrow.csv
import pytest

from chestxray_vit.artifacts.metadata_writer import distinct
from chestxray_vit.data.readers.entries import Entries
from chestxray_vit.data.readers.nih import label_set, read_entries
from chestxray_vit.data.readers.nih_fields import numbers_of, parse_age
from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.conftest import write_csv
from tests.helpers.nih_tables import COLUMNS, row


def test_labels(path):
    write_csv(path)
    for include_no_finding in (False, True):
        entries = read_entries(path, label_set(include_no_finding))
        encode = entries.label_set.encode
        labels, codes_N = entries.labels()
        assert [labels[code] for code in codes_N] == [
            encode(["Cardiomegaly"]),
            encode(["Cardiomegaly", "Emphysema"]),
            encode(["Hernia"]),
            [0.0] * 14 + [1.0] * include_no_finding,
            encode(["Infiltration", "Pleural_Thickening"]),
        ]
        assert entries.label_set == (NIH_CHESTXRAY14.with_negative_column() if include_no_finding else NIH_CHESTXRAY14)


def test_keep(path):
    entries = read_entries(write_csv(path)).keep(np.array([True, False, False, False, True]), ["a notice"])
    assert entries.column("file_name") == ["00000001_000.png", "00000003_001.png"]
    assert entries.column("findings") == ["Cardiomegaly", "Pleural_Thickening|Infiltration"]
    assert [entries.column(name) for name in ("patient_id", "age", "sex")] == [["1", "3"], [57, 81], ["M", "F"]]
    assert [entries.column(name) for name in ("view", "follow_up")] == [["PA", "PA"], [0, 1]]
    assert (len(entries), entries.notices) == (2, ("a notice",))
    left_out = entries.keep(np.array([True, False]), reason="no reason").keep(np.array([False]), reason="another")
    assert (left_out.left_out, left_out.notices) == ((("no reason", 1), ("another", 1)), ("a notice",))
    labels, codes_N = entries.labels()
    assert [labels[code] for code in codes_N] == [
        NIH_CHESTXRAY14.encode(["Cardiomegaly"]),
        NIH_CHESTXRAY14.encode("Infiltration|Pleural_Thickening".split("|")),
    ]


# Against a slow reader: csv's, row by row.


def draw_rows(rng, num_rows):
    """Draw rows of all that a column may hold, a fifth of them doubled and agreeing, some fields quoted."""
    numbers = rng.sample(range(1000 * rng.choice([1, 50, 99_999_999])), num_rows)
    rows = []
    for number in numbers:
        name = f"{number // 1000:08d}_{number % 1000:03d}.png"
        findings = "|".join(rng.sample(NIH_CHESTXRAY14.findings, rng.randrange(4))) or "No Finding"
        age = rng.choice(["58", "058Y", "013M", "730D", "411Y", "", "x", "0", "120", "121"])
        sex, view = (
            rng.choice(["M", "F", "", "U"]),
            rng.choice(["PA", "AP", "", "LL", f'Ä{"," * (num_rows > 99)} "q"', "null", "NA"]),
        )
        fields = [name, findings, rng.choice(["0", "7", "", "x", "-1", "007"]), str(number // 1000), age, sex, view]
        rows.append([*fields, "1", "", "0.1", "0.1"])
    rows += [list(rng.choice(rows)) for _ in range(num_rows // 5)]
    rng.shuffle(rows)

    def cell(field):
        return '"' + field.replace('"', '"' * 2) + '"' if '"' in field or rng.random() < 0.1 else field

    return [",".join(map(cell, fields)) for fields in rows]


def slow_entries(path):
    """Read a CSV of NIH's header with `csv`, each row alone; return its columns by our names."""
    seen, rows = set(), []
    with open(path, encoding="utf-8", newline="") as file:
        for name, findings, follow_up, patient, age, sex, view, *_ in list(csv.reader(file))[1:]:
            if name in seen:
                continue
            seen.add(name)
            number = int(name[:8] + name[9:12])
            follow_up = int(follow_up) if follow_up.isdecimal() else None
            sex = {"M": "M", "F": "F"}.get(sex)
            rows.append((name, number, findings, str(int(patient)), parse_age(age), sex, view or None, follow_up))
    return dict(zip(COLUMNS, map(list, zip(*rows))))


@pytest.mark.parametrize("seed", range(12))
def test_random_files_read_as_by_a_slow_reader(path, seed, small_blocks):
    rng = random.Random(seed)
    for num_rows in (1, 2, 7, 8, 9, 150):
        write_csv(path, draw_rows(rng, num_rows))
        with_no_finding = label_set(include_no_finding=True)
        entries, expected = read_entries(path, with_no_finding), slow_entries(path)
        assert {name: entries.column(name) for name in COLUMNS} == expected
        assert len(entries) == num_rows
        for _ in range(2):  # what was kept once is filtered again
            kept_N = np.array([rng.random() < 0.5 for _ in range(len(entries))], dtype=bool)
            entries = entries.keep(kept_N)
            expected = {name: [v for v, keep in zip(column, kept_N) if keep] for name, column in expected.items()}
            assert {name: entries.column(name) for name in COLUMNS} == expected
            for name in COLUMNS:
                assert entries.arrow(name).to_pylist() == expected[name]
                values, codes_N = distinct(entries.arrow(name))
                assert [values[code] for code in codes_N] == expected[name]
            assert entries.numbers("number").tolist() == expected["number"]
            labels, codes_N = entries.labels()
            assert [labels[code] for code in codes_N] == [
                with_no_finding.encode(cell.split("|")) for cell in expected["findings"]
            ]


def test_a_table_of_several_chunks_and_slices(path):
    """Chunks whose buffers start before them give their own rows."""
    rows = [
        row(f"00000004_{number:03d}.png", age=str(number), view=["", "PA", "AP"][number % 3]) for number in range(40)
    ]
    table = read_entries(write_csv(path, rows)).table
    pieces = [slice(3, 10), slice(30, 40), slice(0, 3), slice(12, 13)]
    entries = Entries(pyarrow.concat_tables([table.slice(p.start, p.stop - p.start) for p in pieces]), NIH_CHESTXRAY14)
    places = [index for piece in pieces for index in range(40)[piece]]
    for kept in (entries, entries.keep(np.arange(len(places)) % 2 == 0)):
        where = places if kept is entries else places[::2]
        assert kept.column("age") == kept.arrow("age").to_pylist() == where
        assert kept.arrow("view").to_pylist() == [[None, "PA", "AP"][index % 3] for index in where]
        assert kept.numbers("number").tolist() == numbers_of(kept.arrow("file_name")).tolist()
        values, codes_N = distinct(kept.arrow("view"))
        assert [values[code] for code in codes_N] == [[None, "PA", "AP"][index % 3] for index in where]
