"""Images that have changed since a run was trained: resuming, evaluating, sampling and reporting notice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gebm.checkpoints import checkpoints
from gebm.cli import main
from gebm.data import load_images
from gebm.data.splits import by_content, hash_of
from gebm.manifest import write_manifest

TINY = (
    "--device -2 --dataset folder:in --image_size 8 --g_model dcgan --d_model dcgan --Z_dim 3 --width .05 --b_size 8 "
    "--total_gen_iter 2 --n_iter_d 1 --n_iter_d_init 1 --refine_iter 2"
).split()
DRAW = "--device -2 --n_samples 4 --num_sampler_steps 2 --sample_b_size 30".split()
FD = "--eval_fid --fid_samples 30 --fid_features pixels".split()
RUN = Path("runs/x")
APART = "no test image equals one that was trained on, pixel for pixel"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(8, 8), dtype=np.uint8)


def add(seeds, folder: str = "in", name: str = "") -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        Image.fromarray(picture(seed)).save(f"{folder}/{name}{seed:03}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with images, `in`, and a run that was trained on them, `runs/x`."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        add(range(100))
        assert main(["train", *TINY, "--log_name", "x"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy of that folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    return tmp_path


def exchange_splits() -> None:
    """Folders of splits in which half of what is for testing was trained on."""
    data = load_images("folder:in", "data", 8)
    shutil.rmtree("in")
    half = len(data.test) // 2
    new = {"train": [*data.train[half:], *data.test[:half]], "test": [*data.test[half:], *data.train[:half]]}
    for split, images in new.items():
        Path("in", split).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[0]).save(f"in/{split}/{i:03}.png")


def old_run() -> None:
    """The run as an older version left it."""
    (RUN / "data.npz").unlink()


def evaluated(*flags: str) -> dict:
    assert main(["evaluate", str(RUN), "--device", "-2", *flags]) == 0
    return json.loads((RUN / "evaluation.json").read_text())


def test_a_run_keeps_hashes_of_its_images():
    content = load_images("folder:in", "data", 8).content
    with np.load(RUN / "data.npz", allow_pickle=False) as record:
        assert str(record["name"]) == "folder:in"
        assert np.array_equal(record["train"], content.train) and np.array_equal(record["test"], content.test)


def test_the_same_images_pass_without_a_word(capsys):
    Path("in").rename("moved")
    Path("moved/000.png").touch()
    assert "data" not in evaluated("--dataset", "folder:moved")
    assert main(["train", "--resume", str(RUN), "--device", "-2", "--dataset", "folder:moved"]) == 0
    printed = capsys.readouterr()
    assert "has changed" not in printed.out + printed.err


def test_an_image_added_moves_none_and_is_told_of(capsys):
    train, test = (len(split) for split in by_content_of(range(100)))
    add(range(100, 110))
    more_train, more_test = (len(split) for split in by_content_of(range(110)))
    note = evaluated()["data"]
    assert note in capsys.readouterr().out
    assert note == (
        f"folder:in has changed since {RUN} was trained: {train} training images, now {more_train}, {train} the same; "
        f"{test} test images, now {more_test}, {test} the same; {APART}"
    )


def by_content_of(seeds) -> tuple[np.ndarray, np.ndarray]:
    return by_content(np.array([hash_of(Path(f"in/{seed:03}.png")) for seed in seeds], np.uint64))


def test_test_images_that_were_trained_on_are_refused(capsys):
    half = len(load_images("folder:in", "data", 8).test) // 2
    exchange_splits()
    commands = {
        "evaluate": ["evaluate", str(RUN), "--device", "-2"],
        "checkpoint": ["evaluate", str(checkpoints(RUN)[0]), "--device", "-2"],
        "sample": ["sample", "--g_path", str(RUN), *DRAW, *FD],
        "warm start": ["train", *TINY, "--g_path", str(RUN), "--d_path", str(RUN)],
    }
    for name, argv in commands.items():
        capsys.readouterr()
        assert main(argv) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"was trained on {half} of the " in error, (name, error)
    assert [path.name for path in Path("runs").iterdir()] == ["x"] and not (RUN / "evaluation.json").exists()


def take_from_training(count: int) -> None:
    """Training images of `in` moved into `held/test`, beside others to train on."""
    add(range(200, 220), "held/train")
    Path("held/test").mkdir()
    data = load_images("folder:in", "data", 8)
    taken = [s for s in range(100) if any(np.array_equal(picture(s), x[0]) for x in data.train[:count])]
    for seed in taken:
        Path(f"in/{seed:03}.png").rename(f"held/test/{seed:03}.png")


@pytest.mark.parametrize("through", ["run", "export"])
@pytest.mark.parametrize("mode", ["both", "energy"])
def test_a_run_that_starts_from_another_has_seen_its_images_too(mode, through, capsys):
    """Over two starts, the second of which is from a run that was trained on none of the images itself."""
    start, held = str(RUN), [*TINY, "--train_mode", mode]
    if through == "export":
        assert main(["export", start, "out"]) == 0
        start = "out"
    take_from_training(7)
    for name in ("second", "third"):
        assert main(["train", *held, "--g_path", start, "--d_path", start, "--log_name", name]) == 0
        start = f"runs/{name}"
        capsys.readouterr()
        assert main(["evaluate", start, "--device", "-2", "--dataset", "folder:held"]) == 2
        assert f"{start}: was trained on 7 of the 7 test images" in capsys.readouterr().err


def test_a_run_that_starts_from_one_without_a_record_says_so():
    old_run()
    start = ["--g_path", str(RUN), "--d_path", str(RUN)]
    assert main(["train", *TINY, *start, "--log_name", "second"]) == 0
    assert main(["evaluate", "runs/second", "--device", "-2"]) == 0
    note = json.loads(Path("runs/second/evaluation.json").read_text())["data"]
    assert note == "runs/second: was started from x, of which it is not known what it was trained on"


def test_an_exported_pair_knows_its_images(capsys):
    assert main(["export", str(RUN), "out"]) == 0
    take_from_training(7)
    capsys.readouterr()
    assert main(["evaluate", "out", "--device", "-2", "--dataset", "folder:held"]) == 2
    assert "out: was trained on 7 of the 7 test images" in capsys.readouterr().err


def test_an_exported_pair_of_two_runs_knows_the_images_of_both(capsys):
    add(range(300, 330), "others")
    assert main(["train", *TINY, "--dataset", "folder:others", "--log_name", "o"]) == 0
    pair = ["--g_path", str(RUN), "--d_path", "runs/o", "--dataset", "folder:others"]
    assert main(["sample", *pair, *DRAW, "--log_name", "s"]) == 0
    assert main(["export", "runs/s", "out"]) == 0
    take_from_training(7)
    capsys.readouterr()
    assert main(["evaluate", "out", "--device", "-2", "--dataset", "folder:held"]) == 2
    assert "out: was trained on 7 of the 7 test images" in capsys.readouterr().err


def test_weights_without_a_record_say_why(capsys):
    assert main(["export", str(RUN), "out"]) == 0
    Path("out/data.npz").unlink()
    shutil.copytree(checkpoints(RUN)[0], "copied")
    reasons = {
        "out": "exported without one",
        "copied": "a checkpoint outside its run, whose data.npz belongs beside the folder checkpoints",
    }
    for weights, reason in reasons.items():
        capsys.readouterr()
        assert main(["evaluate", weights, "--device", "-2"]) == 0
        said = f"{weights}: has no data.npz ({reason}), so it is not known whether folder:in has changed"
        assert f"{said}, nor whether its test images were trained on" in capsys.readouterr().out


def test_samples_are_not_judged_by_images_that_their_model_was_trained_on(capsys):
    assert main(["sample", "--g_path", str(RUN), *DRAW, "--log_name", "s"]) == 0
    assert main(["evaluate", "runs/s", "--device", "-2", "--fid_features", "pixels"]) == 0
    exchange_splits()
    assert main(["evaluate", "runs/s", "--device", "-2", "--fid_features", "pixels"]) == 2
    assert "was trained on" in capsys.readouterr().err


def test_copies_in_both_splits_are_not_taken_for_a_change():
    shutil.rmtree("in")
    add(range(40), "in/train"), add(range(35, 50), "in/test")
    assert main(["train", *TINY, "--log_name", "copies"]) == 0
    add([99], "in/train")
    assert main(["evaluate", "runs/copies", "--device", "-2"]) == 0
    note = json.loads(Path("runs/copies/evaluation.json").read_text())["data"]
    assert note.endswith(
        "40 training images, now 41, 40 the same; 5 test images are copies of images trained on, as they were then"
    )


@pytest.mark.parametrize("left", [True, False])
def test_test_images_that_were_trained_on_are_refused_where_copies_are_left_in_training(left, capsys):
    """A training image that is copied, or moved, among the test images."""
    shutil.rmtree("in")
    add(range(40), "in/train"), add(range(40, 50), "in/test")
    assert main(["train", *TINY, "--log_name", "own"]) == 0
    add(range(7), "in/test")
    for seed in range(7) if not left else ():
        Path(f"in/train/{seed:03}.png").unlink()
    capsys.readouterr()
    assert main(["evaluate", "runs/own", "--device", "-2"]) == 2
    assert "was trained on 7 of the 17 test images" in capsys.readouterr().err


def test_a_run_that_goes_on_with_other_test_images_says_so(capsys):
    data = load_images("folder:in", "data", 8)
    new = next(s for s in range(100, 300) if by_hash_for_testing(s))
    resume = ["train", "--resume", str(RUN), "--device", "-2", "--refine_iter", "4"]
    add([new])
    capsys.readouterr()
    assert main(resume) == 0
    n = len(data.test)
    said = f"--resume {RUN}: folder:in has changed since: {n} test images, now {n + 1}, {n} the same; earlier figures"
    assert capsys.readouterr().out.count(said) == 1


def test_images_in_another_order_are_said_to_be_so(capsys):
    data = load_images("folder:in", "data", 8)
    first = next(seed for seed in range(100) if np.array_equal(picture(seed), data.train[0, 0]))
    Path(f"in/{first:03}.png").rename("in/zz.png")
    note = evaluated()["data"]
    said = f"the same {len(data.train)} training images, in another order"
    assert note == f"folder:in has changed since {RUN} was trained: {said}; {APART}"


@pytest.mark.parametrize("place", ["in", "other"])
def test_images_saved_again_may_be_the_ones_that_were_trained_on(place):
    Path("in").rename("old")
    Path(place).mkdir()
    for file in Path("old").iterdir():
        Image.open(file).save(Path(place, file.name).with_suffix(".jpg"), quality=95)
    note = evaluated("--dataset", f"folder:{place}")["data"]
    assert f"{APART}, and none of all equals one of then; the same images, saved again as JPEG, would look so" in note
    Path(place, "000.jpg").unlink()  # other counts are other images
    assert "saved again" not in evaluated("--dataset", f"folder:{place}").get("data", "")


@pytest.mark.parametrize("change", ["added", "replaced", "renamed"])
def test_a_run_does_not_go_on_with_other_training_images(change, capsys):
    data = load_images("folder:in", "data", 8)
    first = next(seed for seed in range(100) if np.array_equal(picture(seed), data.train[0, 0]))
    if change == "added":
        new = next(s for s in range(100, 200) if not by_hash_for_testing(s))
        add([new])
    elif change == "replaced":
        new = next(s for s in range(100, 200) if not by_hash_for_testing(s))
        add([new], name="zz")
        Path(f"in/{first:03}.png").unlink()
    else:
        Path(f"in/{first:03}.png").rename("in/zz.png")
    capsys.readouterr()
    before = sorted(RUN.rglob("*"))
    assert main(["train", "--resume", str(RUN), "--device", "-2", "--refine_iter", "4"]) == 2
    error = capsys.readouterr().err
    n = len(data.train)
    said = {
        "added": f"{n} training images, now {n + 1}, {n} the same",
        "replaced": f"{n} training images, now {n}, {n - 1} the same",
        "renamed": f"the same {n} training images, in another order",
    }
    assert error.count("\n") == 1 and f"folder:in has changed since: {said[change]}; restore" in error
    assert sorted(RUN.rglob("*")) == before


def by_hash_for_testing(seed: int) -> bool:
    add([seed], "look")
    return hash_of(Path(f"look/{seed:03}.png")) < 2**64 // 10


def test_a_run_without_a_checkpoint_begins_with_the_images_that_are_there():
    shutil.rmtree(RUN / "checkpoints")
    add(range(100, 110))
    assert main(["train", "--resume", str(RUN), "--device", "-2"]) == 0
    assert "data" not in evaluated()


def test_a_run_of_an_older_version_is_told_of_and_goes_on(capsys):
    old_run()
    says = f"{RUN}: has no data.npz (older versions wrote none), so it is not known whether folder:in has changed"
    drawn = "; its split was drawn differently then, so most of the present test images were trained on"
    assert evaluated()["data"] == says + drawn
    capsys.readouterr()
    assert main(["train", "--resume", str(RUN), "--device", "-2", "--refine_iter", "4"]) == 0
    assert says in capsys.readouterr().out
    assert not (RUN / "data.npz").exists()  # what it was begun with is still not known
    assert main(["report", str(RUN)]) == 0
    assert says in capsys.readouterr().out and says in (RUN / "report.html").read_text()


def test_an_older_run_of_another_number_of_images_does_not_go_on_and_says_why(capsys):
    old_run()
    add(range(100, 110))
    capsys.readouterr()
    before = sorted(RUN.rglob("*"))
    assert main(["train", "--resume", str(RUN), "--device", "-2", "--refine_iter", "4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "this data set has" in error
    assert "folder:in is split by content now, older versions split it by the order of its files" in error
    assert sorted(RUN.rglob("*")) == before


def test_an_older_run_on_given_splits_is_not_told_of_another_split(capsys):
    """Nothing but the number is known of it: its own folders are its splits, then as now."""
    add(range(40), "two/train"), add(range(40, 50), "two/test")
    assert main(["train", *TINY, "--dataset", "folder:two", "--log_name", "two"]) == 0
    Path("runs/two/data.npz").unlink()
    add([60], "two/train")
    capsys.readouterr()
    assert main(["train", "--resume", "runs/two", "--device", "-2", "--refine_iter", "4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "drew from 40 images, this data set has 41" in error and "split" not in error


def test_a_run_on_images_of_another_size_is_told_which_size_to_give(capsys):
    """An older version made 32 x 32 of every folder; now images of 20 x 20 stay as they are."""
    Path("wide").mkdir()
    for seed in range(30):
        Image.fromarray(np.kron(picture(seed), np.ones((3, 3), np.uint8))[:20, :20]).save(f"wide/{seed:02}.png")
    assert main(["train", *TINY, "--dataset", "folder:wide", "--log_name", "w"]) == 0  # as --image_size 8
    for file in Path("runs/w").rglob("config.yaml"):
        file.write_text(file.read_text().replace("image_size: 8", "image_size: 0"))
    for checkpoint in checkpoints("runs/w"):
        (checkpoint / "manifest.json").unlink()
        write_manifest(checkpoint)
    commands = {
        "evaluate": ["evaluate", "runs/w"],
        "sample": ["sample", "--g_path", "runs/w", *DRAW, *FD],
        "resume": ["train", "--resume", "runs/w", "--refine_iter", "4"],
    }
    for name, argv in commands.items():
        capsys.readouterr()
        assert main([*argv, "--device", "-2"]) == 2, name
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "images (1, 20, 20), the model's are (1, 8, 8); give --image_size 8" in error
    assert main([*commands["resume"], "--device", "-2", "--image_size", "8"]) == 0
    assert main(["evaluate", str(RUN), "--device", "-2", "--dataset", "folder:wide", "--image_size", "16"]) == 2
    assert "give --image_size 8" in capsys.readouterr().err


def test_an_older_run_on_a_set_of_ours_is_not_told_of(capsys):
    assert main(["train", *TINY, "--dataset", "digits", "--log_name", "d"]) == 0
    Path("runs/d/data.npz").unlink()
    assert main(["evaluate", "runs/d", "--device", "-2"]) == 0
    assert "data.npz" not in capsys.readouterr().out


def test_a_report_says_what_has_changed(capsys):
    add(range(100, 110))
    assert main(["report", str(RUN)]) == 0
    page = (RUN / "report.html").read_text()
    assert "folder:in has changed since" in page and "Nearest training images" in page


def test_a_report_shows_no_test_images_that_were_trained_on(capsys):
    exchange_splits()
    assert main(["report", str(RUN)]) == 0
    assert "could not show all of nearest training images (runs/x: was trained on" in capsys.readouterr().out
    assert "test images that folder:in has now" in (RUN / "report.html").read_text()


def test_a_tenth_that_was_set_aside_is_believed_only_where_the_images_are_the_same(capsys):
    assert main(["train", *TINY, "--log_name", "k", "--refine_kale", "1"]) == 0
    auto = ["sample", "--g_path", "runs/k", *DRAW, "--temperature", "auto"]
    code = main([*auto, "--log_name", "a"])
    assert ("set aside" in capsys.readouterr().out) or code == 2
    add(range(100, 110))
    main([*auto, "--log_name", "b"])
    assert "set aside" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["empty", "other arrays", "floats"])
def test_a_damaged_record_is_one_line(damage, capsys):
    file = RUN / "data.npz"
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "floats":
        np.savez(file, name="x", train=np.ones(3), test=np.ones(3))
    else:
        np.savez(file, x=np.ones(3))
    capsys.readouterr()
    assert main(["evaluate", str(RUN), "--device", "-2"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(file) in error
