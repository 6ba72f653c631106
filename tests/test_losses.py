import pytest
import torch
from monai.losses import DiceLoss

from custom.losses import (
    IGNORE_INDEX,
    PAIRS,
    STUDENTS,
    TEACHERS,
    CrossMatchLoss,
    add_terms,
    dice_loss,
    mix_teachers,
    pseudo_label,
)

WEIGHTS = {"supervised": 0.5, "image_perturbation": 0.25, "distillation": 0.5}


def _inputs(classes: int = 2, size: tuple[int, ...] = (6, 5, 4), labeled: int = 1, unlabeled: int = 3):
    torch.manual_seed(0)
    logits = {name: torch.randn(unlabeled, classes, *size) for name in {*STUDENTS, *TEACHERS}}
    logits["labeled"] = torch.randn(labeled, classes, *size)
    label = torch.randint(classes, (labeled, 1, *size))
    boxes = {number: torch.rand(unlabeled, 1, *size) < 0.3 for number in (1, 2)}
    teachers = {name: pseudo_label(logits[name], 0.6) for name in TEACHERS}
    partners = {name: teacher.roll(1, 0) for name, teacher in teachers.items()}
    return logits, label, mix_teachers(teachers, partners, boxes)


def test_pseudo_label_is_the_argmax_where_confident_and_ignored_elsewhere():
    logits = torch.tensor([[[2.0, 0.1, -2.0], [0.0, 0.0, 0.0]]])  # 1 patch, 2 classes, 3 voxels
    assert pseudo_label(logits, 0.8).flatten().tolist() == [0, IGNORE_INDEX, 1]


def test_pseudo_label_keeps_a_voxel_that_just_reaches_the_threshold():
    assert pseudo_label(torch.zeros(1, 2, 1, 1), 0.5).item() == 0


def test_ignored_voxels_do_not_change_the_loss():
    logits, label, pseudo_labels = _inputs()
    loss = CrossMatchLoss(WEIGHTS)
    before = loss(logits, label, pseudo_labels)
    changed = dict(logits)
    for pairs in PAIRS.values():
        for pair in pairs:
            teacher = pseudo_labels[pair.teacher, pair.box]
            ignored = teacher == IGNORE_INDEX
            assert ignored.any()
            changed[pair.student] = torch.where(ignored, 100 * torch.randn(1, 2, 1, 1, 1), logits[pair.student])
            after = loss(changed | {"labeled": logits["labeled"]}, label, pseudo_labels)
            assert after[pair.name].item() == pytest.approx(before[pair.name].item(), abs=1e-6)
            changed[pair.student] = logits[pair.student]


def test_loss_has_no_gradient_at_ignored_voxels():
    logits, label, pseudo_labels = _inputs()
    student = logits["strong_1"].requires_grad_()
    CrossMatchLoss(WEIGHTS)(logits, label, pseudo_labels)["loss"].backward()
    ignored = (pseudo_labels["weak", 1] == IGNORE_INDEX).expand_as(student)
    assert student.grad[ignored].abs().max() == 0
    assert student.grad[~ignored].abs().max() > 0


def test_nothing_confident_leaves_the_supervised_loss():
    logits, label, pseudo_labels = _inputs()
    ignored = {key: torch.full_like(value, IGNORE_INDEX) for key, value in pseudo_labels.items()}
    terms = CrossMatchLoss(WEIGHTS)(logits, label, ignored)
    assert terms["loss"].item() == pytest.approx(0.5 * terms["supervised"].item(), abs=1e-6)


def test_a_student_that_agrees_with_its_teacher_loses_nothing():
    teacher = torch.randint(2, (2, 1, 4, 4, 4), dtype=torch.uint8)
    logits = 50 * torch.cat([1 - 2.0 * teacher, 2.0 * teacher - 1], 1)
    assert dice_loss(logits.softmax(1), teacher).item() == pytest.approx(0, abs=1e-5)


def test_groups_are_means_of_their_pairs_and_add_up_with_the_paper_s_weights():
    logits, label, pseudo_labels = _inputs()
    eta = 0.2
    terms = CrossMatchLoss({"supervised": 1, "image_perturbation": 1, "distillation": 1}, eta)(
        logits, label, pseudo_labels
    )
    for group, pairs in PAIRS.items():
        assert terms[group].item() == pytest.approx(sum(terms[pair.name].item() for pair in pairs) / len(pairs))
    expected = terms["supervised"] + terms["image_perturbation"]
    expected = expected + (1 - eta) * terms["teacher_distillation"] + eta * terms["decoder_distillation"]
    assert terms["loss"].item() == pytest.approx(expected.item())


def test_unsupervised_weight_scales_what_is_learned_from_unlabeled_data():
    logits, label, pseudo_labels = _inputs()
    loss = CrossMatchLoss(WEIGHTS)
    none, half, whole = (loss(logits, label, pseudo_labels, weight)["loss"].item() for weight in (0, 0.5, 1))
    assert half == pytest.approx((none + whole) / 2)


def test_without_unlabeled_data_the_loss_is_the_supervised_part_with_its_weight():
    logits, label, pseudo_labels = _inputs()
    loss = CrossMatchLoss(WEIGHTS)
    terms = loss({"labeled": logits["labeled"]}, label)
    assert terms["loss"].item() == pytest.approx(0.5 * terms["supervised"].item())
    assert terms["loss"].item() == pytest.approx(loss(logits, label, pseudo_labels, 0.0)["loss"].item())


@pytest.mark.parametrize("unsupervised_weight", [1.0, 0.3])
def test_terms_of_predictions_that_come_in_parts_add_up(unsupervised_weight):
    logits, label, pseudo_labels = _inputs(classes=4)
    loss = CrossMatchLoss(WEIGHTS, eta=0.2)
    clean = {name: value for name, value in logits.items() if not name.startswith("strong")}
    strong = {name: value for name, value in logits.items() if name.startswith("strong")}
    whole = loss(logits, label, pseudo_labels, unsupervised_weight)
    parts = [loss(part, label, pseudo_labels, unsupervised_weight) for part in (clean, strong)]
    added = add_terms(*parts)
    assert added.keys() == whole.keys()
    assert all(0 < part["loss"] < whole["loss"] for part in parts)
    for name, value in whole.items():
        torch.testing.assert_close(added[name], value)


@pytest.mark.parametrize(
    ("names", "with_label", "with_pseudo_labels", "message"),
    [
        (["labeled", "strong1"], True, True, r"unknown predictions \['strong1'\]"),
        (["labeled"], False, True, "the prediction 'labeled' needs a label"),
        (["weak"], True, True, r"got \['weak'\] with pseudo-labels"),
        (["strong_1"], True, False, r"got \['strong_1'\] without pseudo-labels"),
    ],
)
def test_predictions_that_teach_nothing_are_refused(names, with_label, with_pseudo_labels, message):
    logits, label, pseudo_labels = _inputs()
    given = {name: logits.get(name, label) for name in names}
    with pytest.raises(ValueError, match=message):
        CrossMatchLoss(WEIGHTS)(given, label if with_label else None, pseudo_labels if with_pseudo_labels else None)


@pytest.mark.parametrize(
    ("logits", "label", "message"),
    [
        ((3, 4, 5, 5), (3, 5, 5), r"label of class indices, B1H\[WD\], \(3, 1, 5, 5\); got \(3, 5, 5\)"),
        ((2, 4, 5, 5), (2, 4, 5, 5), r"got \(2, 4, 5, 5\)"),
        ((2, 1, 5, 5), (2, 1, 5, 5), "logits of two classes or more"),
    ],
)
def test_shapes_that_would_be_broadcast_are_refused(logits, label, message):
    with pytest.raises(ValueError, match=message):
        CrossMatchLoss(WEIGHTS)({"labeled": torch.zeros(logits)}, torch.zeros(label))


def test_teachers_of_strong_views_come_from_the_partner_inside_the_box():
    box = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    box[..., 0, :] = True
    own, partner = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    mixed = mix_teachers(dict.fromkeys(TEACHERS, own), dict.fromkeys(TEACHERS, partner), {1: box, 2: ~box})
    assert mixed["weak", 1].flatten().tolist() == [1, 1, 0, 0]
    assert mixed["weak_fs", 2].flatten().tolist() == [0, 0, 1, 1]
    assert mixed["weak", None] is own


@pytest.mark.parametrize("weights", [{"supervised": 1.0}, {**WEIGHTS, "other": 1.0}, {**WEIGHTS, "distillation": -1}])
def test_weights_that_are_missing_unknown_or_negative_are_refused(weights):
    with pytest.raises(ValueError, match="loss_weights must give a number >= 0 for each of supervised"):
        CrossMatchLoss(weights)


def test_eta_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], got 1.2"):
        CrossMatchLoss(WEIGHTS, eta=1.2)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("classes", [2, 4])
def test_dice_and_its_gradient_are_monai_s(classes, include_background):
    torch.manual_seed(0)
    logits = torch.randn(3, classes, 6, 5, 4, requires_grad=True)
    label = pseudo_label(torch.randn(3, classes, 6, 5, 4), 0.5)
    theirs = DiceLoss(
        include_background=include_background,
        to_onehot_y=True,
        softmax=True,
        squared_pred=True,
        batch=True,
        smooth_nr=1e-4,
        smooth_dr=1e-4,
        ignore_index=IGNORE_INDEX,
    )(logits, label)
    (expected,) = torch.autograd.grad(theirs, logits)
    ours = dice_loss(logits.softmax(1), label, include_background, smooth=1e-4)
    (gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("group", PAIRS)
def test_a_pair_without_weight_teaches_nothing_and_the_others_are_averaged(group):
    logits, label, pseudo_labels = _inputs()
    off, *others = [pair.name for pair in PAIRS[group]]
    terms = CrossMatchLoss(WEIGHTS, pair_weights={off: 0.0})(logits, label, pseudo_labels)
    assert terms[group].item() == pytest.approx(sum(terms[name].item() for name in others) / len(others))
    none = CrossMatchLoss(WEIGHTS, pair_weights=dict.fromkeys([off, *others], 0))(logits, label, pseudo_labels)
    assert none[group].item() == 0


@pytest.mark.parametrize("pair_weights", [{"strong_1": 1.0}, {"strong_1_from_weak": -1.0}])
def test_pair_weights_of_unknown_pairs_or_below_zero_are_refused(pair_weights):
    with pytest.raises(ValueError, match="pair_weights must give numbers >= 0 for any of strong_1_from_weak"):
        CrossMatchLoss(WEIGHTS, pair_weights=pair_weights)
