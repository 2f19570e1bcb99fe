"""The layout that a command is given."""

from contextlib import closing
from pathlib import Path

import pytest

from dasearch.config import parse_study
from dasearch.errors import LayoutError
from dasearch.layout import Layout
from dasearch.search.single import named_layout
from dasearch.search.study import Study
from dasearch.short_layout import layout_id
from tests.report.stored import NAME, empty_study, evaluate
from tests.report.views import later_trainings, space


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two evaluated layouts, and all-serial that is trained again."""
    with closing(empty_study(tmp_path)) as store:
        evaluate(store, "SPS-PPS", 0.2)
        evaluate(store, "PPP-SSP", 0.1)
        store.begin_training(NAME, later_trainings()[0])
    return Study(parse_study({"name": NAME, "output": str(tmp_path)}))


@pytest.mark.parametrize("text", ["SPS-PPS", "PPP-SSP", "SSS-SSS"])
def test_a_layout_of_the_study_is_named_by_its_id(study: Study, text: str) -> None:
    layout = Layout.parse(text)
    assert named_layout(layout_id(layout), study, space()) == layout


def test_an_id_of_a_layout_that_the_study_lacks_is_refused(study: Study) -> None:
    strange = layout_id(Layout.parse("PPP-PPP"))
    with pytest.raises(LayoutError, match=f"no layout of study '{NAME}' has the id {strange}"):
        named_layout(strange, study, space())
