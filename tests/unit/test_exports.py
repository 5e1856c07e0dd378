"""What `taugrid export` writes, as the tools read it for which it is; and an export that ends early, or meets a full
disk."""

import csv
import errno
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import datasets
import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from in_process import drive, small_run
from nights import taugrid
from snapshots import raises, recorded
from tiny import UNET
from torchvision.datasets import ImageFolder

from taugrid import parquet
from taugrid.config.load import load
from taugrid.errors import RunFailed, UserError, user_errors
from taugrid.orchestrator.exports import images as exported_images
from taugrid.orchestrator.exports.dataset import put_dataset, split_of
from taugrid.orchestrator.exports.export import export_images
from taugrid.orchestrator.exports.results import front_matter
from taugrid.orchestrator.exports.target import SUMS, Target, filling, put_file
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.storage import LOCAL

pytestmark = pytest.mark.usefixtures("one_thread", "few_draws", "sketched")

CONFIG = """
name: small
model: {oracle: gaussian}
data: {name: gaussian, shape: [3, 2, 2]}
sample: {seed: 0, num_samples: 200, batch_size: 50, shard_evaluations: 200}
grid: {steps: [2], eta: [0.0, 0.2]}
evaluate: {metrics: [fid, kid]}
cluster: {workers: 1}
"""
"""200 images of 12 values are enough for a standard error of FID. A shard has 100."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_thread, sketched):
    folder = tmp_path_factory.mktemp("exports")
    (folder / "small.yaml").write_text(CONFIG)
    taugrid("run", folder / "small.yaml", "--out", folder / "run")
    return folder / "run"


@pytest.fixture
def untouched(finished):
    before = tree(finished)
    yield
    assert tree(finished) == before


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edited(finished, place, change, name="tables/quality.json"):
    run = shutil.copytree(finished, place)
    document = json.loads((run / name).read_text())
    change(document)
    (run / name).write_text(json.dumps(document))
    return run


def refused(*arguments):
    return taugrid("export", *arguments, code=2)[1]


def yaml_in(text):
    """The last block of YAML that a card shows."""
    return yaml.safe_load(text.split("~~~~~~yaml\n")[-1].split("~~~~~~")[0])


def inodes(folder):
    return {str(p.relative_to(folder)): p.stat().st_ino for p in folder.rglob("*") if p.is_file() and p.name != SUMS}


def pixels(run, cell):
    """(N, H, W, C), by index, from the sample files."""
    parts = sorted((run / "samples" / cell).glob("*.parquet"))
    return np.concatenate([images for part in parts for _, images in parquet.read_images(part)]).transpose(0, 2, 3, 1)


def cells(run):
    return sorted(folder.name for folder in (run / "samples").iterdir())


def check_sums(folder):
    """By GNU's own program, if it is here; and no file may be missing in the list."""
    if shutil.which("sha256sum"):
        done = subprocess.run(["bash", "-c", block("bash")], cwd=folder, capture_output=True, check=True)
        assert not done.stderr
    listed = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()[1:]]
    there = {name: hashlib.sha256(data).hexdigest() for name, data in tree(folder).items() if name != SUMS}
    assert {name: digest for digest, name in listed} == there


def test_pngs_are_named_by_index_and_have_the_bytes_of_the_sample_files(finished, tmp_path, untouched):
    recorded(taugrid("export", finished, "eta=0.2", "--to", tmp_path / "one")[0], "images")
    folder = next(name for name in cells(finished) if "eta0.2" in name)
    stored = [row["image"]["bytes"] for row in rows_in(finished / "samples" / folder)]
    found = tree(tmp_path / "one")
    assert set(found) == {SUMS, *(f"{i:07d}.png" for i in range(200))}
    assert [found[f"{i:07d}.png"] for i in range(200)] == stored
    check_sums(tmp_path / "one")
    taugrid("export", finished, "--to", tmp_path / "all")
    check_sums(tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir() if path.is_dir()) == cells(finished)
    del found[SUMS]
    assert tree(tmp_path / "all" / folder) == found


def test_the_same_moments_again_change_nothing_and_another_file_is_kept(finished, tmp_path, untouched):
    file = tmp_path / "reference.npz"
    taugrid("export", finished, "--reference", "--to", file)
    before = file.stat()
    taugrid("export", finished, "--reference", "--to", file)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    np.savez(file, mu=np.zeros(12), sigma=np.eye(12))
    other = file.read_bytes()
    assert "exists and is not this reference" in refused(finished, "--reference", "--to", file)
    assert file.read_bytes() == other


def rows_in(folder):
    return [row for part in sorted(folder.rglob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def labels_in(root):
    return [row["label"] for row in rows_in(root / "samples")]


def test_an_npz_has_the_images_in_their_order_in_adms_form(finished, tmp_path, untouched):
    taugrid("export", finished, "--format", "npz", "--to", tmp_path / "all")
    check_sums(tmp_path / "all")
    for cell in cells(finished):
        with np.load(tmp_path / "all" / f"{cell}.npz") as arrays:
            assert list(arrays) == ["arr_0"]
            assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((200, 2, 2, 3), np.uint8)
            assert np.array_equal(arrays["arr_0"], pixels(finished, cell))
    assert not np.array_equal(*(pixels(finished, cell) for cell in cells(finished)))
    file = tmp_path / "new/one.npz"
    taugrid("export", finished, "eta=0.2", "--format", "npz", "--to", file)
    before = file.stat().st_ino
    taugrid("export", finished, "eta=0.2", "--format", "npz", "--to", file)
    assert file.stat().st_ino == before, "it is there already"
    recorded(refused(finished, "eta=0", "--format", "npz", "--to", file), "this")
    assert zipfile.ZipFile(file).testzip() is None


def test_memory_does_not_grow_with_what_is_put_into_an_npz(tmp_path):
    peaks = []
    for count in (16, 128):
        tracemalloc.start()
        with zipfile.ZipFile(tmp_path / f"{count}.npz", "w") as archive:
            ones = (np.ones((512, 512, 2), np.uint8) for _ in range(count))
            exported_images.put_array(archive, "arr_0", ones, count, lambda done: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert np.load(tmp_path / "128.npz")["arr_0"].shape == (128, 512, 512, 2)
    assert peaks[1] < 1.2 * peaks[0] < 4 * 2**20


def test_a_data_set_has_a_split_for_each_cell_with_its_images_decoded(finished, tmp_path, untouched, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    taugrid("export", finished, "--format", "hf", "--to", "dataset")
    check_sums(tmp_path / "dataset")
    exec(block("python"), names := {})
    loaded = names["splits"]
    splits = {cell.replace("-", "_"): cell for cell in cells(finished)}
    assert set(loaded) == set(splits)
    assert any(name.startswith("S0002_eta0.2_") for name in splits)
    for split, cell in splits.items():
        assert isinstance(loaded[split].features["image"], datasets.Image)
        assert loaded[split]["index"][:] == list(range(200))
        found = np.stack([np.asarray(row["image"]) for row in loaded[split]])
        assert np.array_equal(found, pixels(finished, cell)), split
    card = yaml.safe_load((tmp_path / "dataset/README.md").read_text().split("---\n")[1])
    assert [config["config_name"] for config in card["configs"]] == ["default"]
    assert "license" not in card
    body = (tmp_path / "dataset/README.md").read_text()
    for row in csv.DictReader((finished / "tables/quality.csv").open()):
        assert f"{float(row['fid']):.2f}" in body or f"{float(row['fid']):.3f}" in body
    shutil.rmtree(tmp_path / "dataset/data" / min(splits))
    with pytest.raises((ValueError, FileNotFoundError)):  # the card promises it
        datasets.load_dataset("dataset")


def test_a_model_card_holds_every_score_with_its_error_in_the_form_of_the_hub(finished, tmp_path, untouched):
    file = tmp_path / "card.md"
    taugrid("export", finished, "--format", "model-card", "--to", file)
    data = ModelCard.load(file).data
    assert data.model_name == "small"
    found = {(result.metric_args["cell"], result.metric_type): result for result in data.eval_results}
    rows = list(csv.DictReader((finished / "tables/quality.csv").open()))
    assert len(rows) == 2
    for row in rows:
        for metric in ("fid", "kid"):
            result = found.pop((row["cell"], metric))
            assert result.metric_value == float(row[metric])
            assert result.dataset_name == "gaussian"
            assert result.metric_args["standard_error"] == float(row[f"{metric}_se"])
    assert {metric for _, metric in found} == {"fid_exact"}, "an oracle's closed form"
    assert load(yaml_in(file.read_text())) == load(yaml.safe_load(CONFIG.partition("cluster")[0]))
    assert "| η \\ S | 2 |" in file.read_text()
    before = file.stat().st_ino
    taugrid("export", finished, "--format", "model-card", "--to", file)
    assert file.stat().st_ino == before
    recorded(refused(finished, "eta=0", "--format", "model-card", "--to", file), "model")


HOSTILE = "\xc3\xef\xf1\u0142\u00ab\u2026\u201c \u2013 a_b%$#&{}~^\\<i>|\u2265\U0001f4a5\u4e2d\x07\\input{/etc/passwd}"
PAGE = Path(__file__).parents[2] / "docs/exports.md"


def block(language):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return found


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
@pytest.mark.parametrize("hostile", [False, True])
def test_latex_compiles_with_booktabs_and_siunitx(finished, tmp_path, hostile):
    def change(document):
        for row in document["rows"]:
            row["diffusion.schedule"] = HOSTILE + " -6.5 of 95 %" + row["cell"]
        document["notes"] = [HOSTILE]

    run = edited(finished, tmp_path / "run", change) if hostile else finished
    taugrid("export", run, "--format", "latex", "--to", tmp_path / "table.tex")
    (tmp_path / "main.tex").write_text(block("latex"))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "main.pdf").stat().st_size
    text = (tmp_path / "table.tex").read_text()
    fids = [line for line in text.splitlines() if "\\num{" in line and " +- " in line]
    assert len(fids) >= 4
    assert (" $-$6.5 of 95~\\%" in text) == hostile
    assert "\\input{" not in text.replace("\\input{table}", "")


def test_labels_are_folders_that_imagefolder_reads_or_arr_1_or_a_column(labelled, tmp_path, monkeypatch):
    root, run = labelled
    labels = labels_in(root)
    cell = run.plan.cells[0].id
    taugrid("export", root, cell, "--by-label", "--to", tmp_path / "folders")
    check_sums(tmp_path / "folders")
    read = ImageFolder(tmp_path / "folders")
    by_index = {int(Path(path).stem): label for path, label in read.samples}
    assert [by_index[i] for i in range(22)] == labels
    assert read.classes == ["0", "1", "2"]
    taugrid("export", root, cell, "--format", "npz", "--to", tmp_path / "one.npz")
    with np.load(tmp_path / "one.npz") as arrays:
        assert arrays["arr_0"].shape == (22, 8, 8, 1)
        assert arrays["arr_1"].dtype == np.int64
        assert arrays["arr_1"].tolist() == labels
    taugrid("export", root, cell, "--to", tmp_path / "flat")
    rows = list(csv.DictReader((tmp_path / "flat/metadata.csv").open()))
    assert [row["file_name"] for row in rows] == [f"{i:07d}.png" for i in range(22)]
    assert [int(row["label"]) for row in rows] == labels


def test_of_a_file_with_more_images_the_first_are_taken(labelled, tmp_path, monkeypatch):
    """As of a run whose N was larger once."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    root, run = labelled
    smaller = [replace(c, settings=c.settings.model_copy(update={"num_samples": 10})) for c in run.plan.cells]
    fewer = replace(run, configured=run.plan.with_cells(smaller), sizes={})
    for form in ("png", "npz", "hf"):
        export_images(fewer, form, tmp_path / form, Progress.silent())
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    (split,) = loaded
    images = pixels(root, run.plan.cells[0].name)[:10]
    assert np.array_equal(np.stack([np.asarray(row["image"]) for row in loaded[split]]), images[..., 0])
    assert loaded[split]["label"][:] == labels_in(root)[:10]
    (file,) = (tmp_path / "npz").glob("*.npz")
    with np.load(file) as arrays:
        assert np.array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == labels_in(root)[:10]
    assert len(list((tmp_path / "png").glob("*/*.png"))) == 10
    before = tree(tmp_path / "npz")
    with raises(UserError):  # they have grown
        export_images(run, "npz", tmp_path / "npz", Progress.silent())
    assert tree(tmp_path / "npz") == before


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, one_thread, sketched):
    """The directory of a run of 22 samples of three classes, in shards of 8, and the run."""
    place = tmp_path_factory.mktemp("labelled")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=4, **UNET)
    unet.register_to_config(null_label=3)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    diffusers.DDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(place / "net")
    text = f"""
name: classes
model: {{checkpoint: {place}/net}}
data: {{name: gaussian, shape: [1, 8, 8]}}
sample: {{seed: 0, num_samples: 22, batch_size: 4, shard_evaluations: 16, steps: 2, labels: balanced}}
grid: {{}}
evaluate: {{metrics: [fid], extractor: pixels}}
cluster: {{workers: 1}}
"""
    with small_run(place, text) as opened:
        drive(opened, place / "run", LOCAL)
    return place / "run", replace(opened, rundir=RunDir(place / "run", LOCAL))


class Killed(BaseException):
    """The process ends here: nothing is caught or cleaned up in between that a kill would not."""


@pytest.mark.parametrize(("form", "share"), [("png", 3), ("npz", 1000), ("npz", 3), ("hf", 3)])
def test_a_killed_export_leaves_no_half_file_and_is_made_again(finished, tmp_path, monkeypatch, untouched, form, share):
    taugrid("export", finished, "--format", form, "--to", tmp_path / "whole")
    wanted, written, put = len(tree(tmp_path / "whole")) // share, [], Target.put

    def put_or_die(self, name, write):
        if len(written) == wanted:
            (self.folder / ".taugrid-export.0123456789ab.tmp").write_bytes(b"half")
            raise Killed
        written.append(name)
        put(self, name, write)

    command = ("export", finished, "--format", form, "--to", tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(Target, "put", put_or_die)
        with pytest.raises(Killed):
            taugrid(*command)
    whole = tree(tmp_path / "whole")
    left = {name: data for name, data in tree(tmp_path / "killed").items() if not Path(name).name.startswith(".")}
    assert len(left.pop(SUMS).splitlines()) == 1, "it lists no file"
    assert set(left) == set(written)
    assert all(whole[name] == data for name, data in left.items()), "what has a final name is whole"
    taugrid(*command)
    assert tree(tmp_path / "killed") == whole
    inode = inodes(tmp_path / "killed")
    taugrid(*command)
    assert inodes(tmp_path / "killed") == inode, "a file of a complete export is not written again"


def test_a_file_that_has_changed_since_is_written_again(finished, tmp_path):
    command = ("export", finished, "--format", "npz", "--to", tmp_path / "npz")
    taugrid(*command)
    whole = tree(tmp_path / "npz")
    changed, gone = sorted((tmp_path / "npz").glob("*.npz"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    gone.unlink()
    taugrid(*command)
    assert tree(tmp_path / "npz") == whole


def test_a_card_that_the_user_changed_stays(finished, tmp_path):
    command = ("export", finished, "--format", "hf", "--to", tmp_path / "hf")
    taugrid(*command)
    card = tmp_path / "hf/README.md"
    written = card.read_text()
    card.write_text(licensed := written.replace("---\n", "---\nlicense: mit\n", 1))
    for _ in range(2):
        recorded(taugrid(*command)[1], "changed")
        assert (card.read_text(), card.with_name("README.new.md").read_text()) == (licensed, written)
        assert subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=tmp_path / "hf", check=True).returncode == 0


def test_a_file_that_comes_meanwhile_or_a_dangling_link_is_not_replaced(finished, tmp_path):
    def write(path):
        path.write_text("ours")
        (tmp_path / "x.tex").write_text("theirs")

    with raises(UserError):
        put_file(tmp_path / "x.tex", "it", lambda path: path.read_text() == "ours", write)
    assert tree(tmp_path) == {"x.tex": b"theirs"}
    (tmp_path / "link.tex").symlink_to(tmp_path / "nowhere")
    recorded(refused(finished, "--format", "latex", "--to", tmp_path / "link.tex"), "exists")
    assert (tmp_path / "link.tex").is_symlink()


def test_a_folder_that_is_read_only_is_one_line(finished, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for form, name in (("png", ""), ("latex", "x.tex")):
        recorded(refused(finished, "--format", form, "--to", small_disk / name), "write")


def test_a_card_tells_no_home_folder_and_every_id_stays_text(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(finished.parent / "alice"))
    weights = {"weights": str(finished.parent / "alice/w.pth")}
    run = edited(finished, tmp_path / "run", lambda document: document["evaluate"].update(weights), "config.json")
    for form, to, card in (("model-card", "card.md", "card.md"), ("hf", "hf", "hf/README.md")):
        taugrid("export", run, "--format", form, "--to", tmp_path / to)
        text = (tmp_path / card).read_text()
        config = yaml_in(text)
        assert config["evaluate"]["weights"] == "~/w.pth"
        assert "cluster" not in config
        assert "± is one" in text, "of KID"
        assert "alice" not in text
    assert front_matter({"id": "12345678e9", "b": "0189", "c": 10}) == '---\nid: "12345678e9"\nb: "0189"\nc: 10\n---'


def test_a_folder_that_holds_anything_else_is_refused(finished, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    recorded(refused(finished, "--to", finished / "x"), "directory")
    recorded(refused(finished, "--to", tmp_path / "full"), "folder")
    taugrid("export", finished, "eta=0", "--format", "npz", "--to", tmp_path / "one")
    before = tree(tmp_path)
    for other in (["eta=0.2"], []):
        recorded(refused(finished, *other, "--format", "npz", "--to", tmp_path / "one"), "images")
    assert tree(tmp_path) == before


def test_a_full_disk_is_one_line_and_nothing_is_lost(finished, tmp_path, monkeypatch, untouched):
    written = Path.write_bytes

    def write(path, data):
        if len(list(tmp_path.glob("to/*.png"))) < 3:
            return written(path, data)
        written(path, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    command = ("export", finished, "eta=0", "--to", tmp_path / "to")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        with raises(RunFailed), user_errors():
            taugrid(*command)
    assert len(list((tmp_path / "to").glob("*.png"))) == 3
    taugrid(*command)
    check_sums(tmp_path / "to")


def test_cells_without_all_their_images_are_left_out_and_added_later(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    part = run / "samples" / cells(run)[0] / "part-000001.parquet"
    part.rename(tmp_path / "kept")
    command = ("export", run, "--format", "hf", "--to", tmp_path / "hf")
    out, err = taugrid(*command, "--json", code=4)
    document = json.loads(out)
    assert [cell["images"] for cell in document["cells"]] == [200]
    recorded(err, "missing")
    assert document["left_out"][0] in err
    recorded(refused(run, "eta=0", "--to", tmp_path / "x"), "missing")
    before = inodes(tmp_path / "hf")
    (tmp_path / "kept").rename(part)
    taugrid(*command)
    check_sums(tmp_path / "hf")
    after = inodes(tmp_path / "hf")
    assert len(after) == len(before) + 2
    assert all(after[name] == inode for name, inode in before.items() if name != "README.md")


def test_an_export_from_a_bucket_is_the_same(labelled, bucket, tmp_path):
    root, run = labelled
    place, storage = bucket
    for name, data in tree(root).items():
        with storage.temporary(place / name) as temporary:
            temporary.write_bytes(data)
            storage.commit(place / name, temporary)
    there = replace(run, rundir=RunDir(place, storage))
    for form in ("png", "npz", "hf"):
        export_images(run, form, tmp_path / "here" / form, Progress.silent())
        export_images(there, form, tmp_path / "there" / form, Progress.silent())
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


def test_splits_whose_files_have_other_columns_get_a_config_of_their_own(finished, tmp_path, monkeypatch):
    """As the cells of networks with classes, beside those without."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    run = open_existing(str(shutil.copytree(finished, tmp_path / "run")))
    for part in (tmp_path / "run/samples" / run.plan.cells[1].name).glob("*.parquet"):
        table = pq.read_table(part)
        features = json.loads(table.schema.metadata[b"huggingface"])
        features["info"]["features"] |= {"label": {"dtype": "int32", "_type": "Value"}} | {
            "latent": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 2, "_type": "Sequence"}
        }
        table = table.append_column("label", pa.array([7] * len(table), pa.int32()))
        table = table.append_column("latent", pa.array([[0, 1]] * len(table), pa.list_(pa.float32(), 2)))
        metadata = table.schema.metadata | {b"huggingface": json.dumps(features).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), part)
    with filling(tmp_path / "hf", {"images": {}}) as target:
        put_dataset(target, run, run.plan.cells, lambda count: None)
    for name, cell in zip(("default", "columns-2"), run.plan.cells, strict=True):
        loaded = datasets.load_dataset(str(tmp_path / "hf"), name, cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == [split_of(cell)]
        assert ("label" in loaded[split_of(cell)].features) == (name == "columns-2")
    assert loaded[split_of(cell)][3]["latent"] == [0.0, 1.0]


def test_a_card_says_what_the_protocols_share_and_the_rest_of_each(finished, tmp_path):
    def change(document):
        (protocol,) = document["protocols"].values()
        other = {key: value for key, value in protocol.items() if key != "rounding"} | {"clip": "x0", "tau": [1, 500]}
        document["rows"][1]["protocol"], document["protocols"]["other"] = "other", other

    run = edited(finished, tmp_path / "run", change)
    document = json.loads((run / "tables/quality.json").read_text())
    taugrid("export", run, "--format", "hf", "--to", tmp_path / "hf")
    said = yaml.safe_load((tmp_path / "hf/README.md").read_text().split("~~~~~~yaml\n")[1].split("~~~~~~")[0])
    splits = said.pop("splits")
    assert {"clip", "tau", "rounding"} & set(said) == set()
    for row, protocol in zip(document["rows"], document["protocols"].values(), strict=True):
        assert said["reference"] == protocol["reference"]
        (split,) = (split for split in splits if split.endswith(row["cell"]))
        assert said | splits[split] == protocol


def test_a_run_without_scores_has_images_and_says_what_it_lacks(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "tables")
    taugrid("export", run, "--format", "hf", "--to", tmp_path / "hf")
    assert "## Protocol" not in (tmp_path / "hf/README.md").read_text()
    for form in ("latex", "model-card"):
        recorded(refused(run, "--format", form, "--to", tmp_path / form), "evaluate")
        assert not (tmp_path / form).exists()


def test_damage_that_comes_while_files_are_read_is_one_line(finished, tmp_path, monkeypatch):
    run = shutil.copytree(finished, tmp_path / "run")
    part = run / "samples" / cells(run)[0] / "part-000001.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 3] ^= 1
    part.write_bytes(data)
    recorded(refused(run, "eta=0", "--to", tmp_path / "x"), "missing")
    monkeypatch.setattr("taugrid.orchestrator.exports.export.choose", lambda run, name: (run.plan.cells[:1], []))
    for form in ("png", "npz"):
        said = refused(run, "--format", form, "--to", tmp_path / form)
        assert [part in said for part in ("part-000001.parquet", "`taugrid verify", "\n")] == [True, True, False]
        assert len((tmp_path / form / SUMS).read_text().splitlines()) == 1, "it lists no file"


COMMANDS = re.findall(r"^ {4}(taugrid [^\n#]+)", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_that_the_page_shows_does_what_it_says(line, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(finished)
    words = shlex.split(line.replace("steps=10", "steps=2"))
    taugrid(*words[1:])
    assert Path(words[words.index("--to") + 1]).exists()
