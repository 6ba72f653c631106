import logging

import numpy as np
import pytest
import torch
from monai.data import Dataset as MonaiDataset
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

from custom.data.streams import (
    ResumableSampler,
    SeededDataset,
    SeededIndex,
    StreamLoader,
    TwoStreamLoader,
    default_num_workers,
)
from custom.utils.errors import UserError, _print_user_error
from custom.utils.randomness import derived_seed, private_generators


def test_streams_are_drawn_side_by_side():
    loader = TwoStreamLoader(
        [{"image": torch.tensor(i)} for i in range(3)], [{"image": torch.tensor(-i)} for i in range(2)]
    )
    batches = list(loader)
    assert len(batches) == loader.iteration == 2
    assert [(int(b["labeled"]["image"]), int(b["unlabeled"]["image"])) for b in batches] == [(0, 0), (1, -1)]


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(2, 1, 2), (12, 1, 3), (64, 1, 4), (64, 4, 4), (64, 8, 2)])
def test_workers_are_counted_by_the_cores_that_a_process_may_use(cores, ranks, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 256)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert default_num_workers() == expected
    monkeypatch.delattr("os.sched_getaffinity")  # as on other systems than Linux
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert default_num_workers() == 2


def test_without_an_unlabeled_list_training_says_that_it_is_supervised(caplog):
    with caplog.at_level(logging.WARNING):
        loader = TwoStreamLoader([{"image": torch.tensor(0)}], None)
    assert "unlabeled list is empty: training is supervised" in caplog.text
    assert [sorted(batch) for batch in loader] == [["labeled"]]


@pytest.mark.parametrize(("batch_size", "warns"), [(1, True), (2, False)])
def test_a_single_unlabeled_patch_per_batch_warns_that_cutmix_does_nothing(batch_size, warns, caplog):
    labeled, unlabeled = (torch.utils.data.DataLoader(range(2), batch_size=size) for size in (1, batch_size))
    with caplog.at_level(logging.WARNING):
        TwoStreamLoader(labeled, unlabeled)
    assert ("CutMix finds no partner patch" in caplog.text) == warns


def _volumes(depths: list[int]) -> list[dict[str, torch.Tensor]]:
    """Volumes whose voxels say where they come from: 10 * volume + slice."""
    columns = [10 * number + torch.arange(depth).float() for number, depth in enumerate(depths)]
    return [{"image": c.expand(1, 4, 4, -1), "label": c.expand(1, 4, 4, -1)} for c in columns]


def test_every_slice_of_every_volume_is_a_sample():
    samples = SeededDataset(_volumes([3, 1, 2]), transform=lambda sample: sample, slice_axis=2)
    assert [sample["image"][0, 0, 0].item() for sample in samples] == [0, 1, 2, 10, 20, 21]
    assert {tuple(sample["label"].shape) for sample in samples} == {(1, 4, 4)}


def test_volumes_are_samples_where_nothing_is_sliced():
    samples = SeededDataset(_volumes([3, 1]), transform=lambda sample: sample)
    assert [sample["image"].shape[-1] for sample in samples] == [3, 1]


def test_a_pass_over_the_slices_takes_each_once():
    samples = SeededDataset(_volumes([3, 1, 2]), transform=lambda sample: sample, slice_axis=2)
    loader = torch.utils.data.DataLoader(samples, batch_size=2, shuffle=True)
    drawn = torch.cat([batch["image"][:, 0, 0, 0] for batch in loader])
    assert sorted(drawn.tolist()) == [0, 1, 2, 10, 20, 21]


def _sampler(size: int, batch_size: int = 2, **arguments) -> ResumableSampler:
    return ResumableSampler(range(size), batch_size, seed=7, stream=arguments.pop("stream", 0), **arguments)


def _take(sampler: ResumableSampler, count: int) -> list[SeededIndex]:
    return [draw for draw, _ in zip(sampler, range(count), strict=False)]


def test_every_pass_takes_every_sample_once_in_a_new_order():
    indices = [draw.index for draw in _take(_sampler(5), 15)]
    passes = [indices[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(order) == list(range(5)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_a_stream_can_be_entered_anywhere():
    whole, later = _take(_sampler(5), 40), _sampler(5)
    later.iteration = 7
    assert _take(later, 26) == whole[14:]


def test_seeds_and_streams_differ():
    draws = _take(_sampler(5), 100)
    assert len({draw.seed for draw in draws}) == 100
    assert _take(_sampler(5, stream=1), 100) != draws


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_what_one_process_with_a_larger_batch_draws(num_ranks):
    together = _take(_sampler(7, batch_size=2 * num_ranks), 12 * num_ranks)
    shares = [_take(_sampler(7, rank=rank, num_ranks=num_ranks), 12) for rank in range(num_ranks)]
    for iteration in range(6):
        drawn = [draw for share in shares for draw in share[2 * iteration : 2 * iteration + 2]]
        assert drawn == together[2 * num_ranks * iteration : 2 * num_ranks * (iteration + 1)]


def _noisy_loader(num_workers: int) -> StreamLoader:
    torch.manual_seed(0)
    views = Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=0.5), _draw_globally])
    samples = SeededDataset([{"image": torch.randn(1, 8, 8)} for _ in range(5)], views)
    return StreamLoader(samples, batch_size=2, seed=7, stream=0, num_workers=num_workers)


def _draw_globally(sample: dict) -> dict:
    return sample | {"noise": torch.rand(3), "number": np.random.rand()}


def _images(loader: TwoStreamLoader, count: int) -> list[torch.Tensor]:
    return [
        torch.cat([batch["labeled"]["image"].flatten(), batch["labeled"]["noise"].flatten()])
        for batch, _ in zip(loader, range(count), strict=False)
    ]


def test_samples_do_not_depend_on_worker_processes_or_on_where_the_stream_was_entered():
    expected = _images(TwoStreamLoader(_noisy_loader(0)), 9)
    for num_workers in (0, 1, 3):
        loader = TwoStreamLoader(_noisy_loader(num_workers))
        torch.manual_seed(num_workers)  # what was drawn before is of no importance
        for start in (0, 4):
            loader.iteration = start
            drawn = _images(loader, 9 - start)
            assert all(torch.equal(a, b) for a, b in zip(drawn, expected[start:], strict=True))


def test_drawing_a_sample_leaves_the_global_generators_as_they_were():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with private_generators(5):
        assert torch.rand(1) != torch.rand(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_seeds_of_neighbouring_places_are_unrelated():
    seeds = [derived_seed(1337, stream, position) for stream in range(4) for position in range(1000)]
    assert len(set(seeds)) == len(seeds)
    bits = np.unpackbits(np.array(seeds, dtype=">u4").view(np.uint8)).mean()
    assert bits == pytest.approx(0.5, abs=0.01)


def test_a_batch_tells_its_cases():
    volumes = torch.utils.data.Subset([{"image": torch.zeros(1, 4, 4, 2)}], [0])
    volumes.data = [{"image": "images/heart.nii.gz"}]
    samples = SeededDataset(volumes, lambda sample: sample, slice_axis=2)
    assert [samples[i]["case"] for i in range(2)] == ["heart, slice 0", "heart, slice 1"]


class _Volumes(torch.utils.data.Dataset):
    """One volume that cannot be read, and what is known of it."""

    def __init__(self, case: dict, error: Exception) -> None:
        self.data, self.error = [case], error

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, _: int) -> dict:
        raise RuntimeError("applying transform") from self.error  # as MONAI does


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_scan_that_vanishes_in_a_training_is_named_in_one_line(num_workers, tmp_path, capsys):
    case = {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "b.nii.gz")}
    (tmp_path / "b.nii.gz").touch()
    volumes = _Volumes(case, FileNotFoundError(2, "No such file or directory", case["image"]))
    loader = StreamLoader(SeededDataset(volumes, dict), 1, seed=7, stream=0, num_workers=num_workers)
    with pytest.raises(UserError) as found:
        next(iter(loader))
    _print_user_error(found.type, found.value, found.tb)
    hint = "Put this right; then the same command resumes from the last checkpoint."
    assert capsys.readouterr().err == f"\nerror: {case['image']}: no such file. {hint}\n"


@pytest.mark.parametrize("case", [{"image": torch.zeros(1, 2, 2)}, {"image": [torch.zeros(1, 2, 2)]}, {"case": "a"}])
def test_volumes_without_files_fail_as_they_do(case):
    samples = SeededDataset(_Volumes({"case": "a"} | case, ValueError("reason")), dict)
    with pytest.raises(RuntimeError, match="applying transform"):
        samples[0]


def test_a_data_set_of_tensors_with_further_entries_is_cut_into_slices():
    cases = [{"image": torch.rand(1, 4, 4, 3), "label": torch.zeros(1, 4, 4, 3), "patient": "p1"}]
    samples = SeededDataset(MonaiDataset(cases), transform=lambda sample: sample, slice_axis=2)
    assert torch.equal(samples[2]["image"], cases[0]["image"][..., 2])
    assert samples[2]["patient"] == "p1"
    assert samples[2]["case"] == "sample 0, slice 2"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"image": np.zeros((1, 4, 4))}, "image: ndarray"),
        ({"label": torch.zeros(1, 4, 4)}, "image: NoneType"),
        ({"image": torch.zeros(1, 4, 4), "label": 3}, "label: int"),
    ],
)
def test_a_data_set_that_gives_no_tensors_is_refused(case, message):
    with pytest.raises(UserError, match=rf"must give image and label as tensors, CH\[WD\]; got {message}"):
        SeededDataset([case], transform=lambda sample: sample)[0]
