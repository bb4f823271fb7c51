"""Names and numbers that identify a patient, planted in headers, are in nothing that maskwright writes or says."""

import base64
import io
import logging
import pickle
import re
import warnings
import zipfile
import zlib

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.uid import generate_uid

import maskwright as mw
from maskwright.cli.main import run as command_line
from maskwright.medical.fake import fake_series
from maskwright.medical.find import find_volumes
from maskwright.medical.loaders import SliceLoader, VolumeLoader

PLANTED = {
    "PatientName": "Zxqvnamefamily^Zxqvnamegiven",
    "PatientID": "ZXQVID4711",
    "PatientBirthDate": "19330712",
    "PatientAddress": "Zxqvstreet 5",
    "OtherPatientIDs": "ZXQVOTHER",
    "AccessionNumber": "ZXQVACC99",
    "InstitutionName": "Zxqvhospital",
    "InstitutionAddress": "Zxqvtown",
    "ReferringPhysicianName": "Zxqvphysician^A",
    "PerformingPhysicianName": "Zxqvphysician^B",
    "OperatorsName": "Zxqvoperator",
    "StationName": "ZXQVSTATION",
    "StudyDescription": "zxqv study of somebody",
    "SeriesDescription": "zxqv series of somebody",
    "ProtocolName": "zxqv protocol",
    "ImageComments": "zxqv comment",
    "StudyID": "ZXQVSTUDY",
    "StudyDate": "20190830",
    "DeviceSerialNumber": "ZXQVSERIAL",
}
EMBEDDED = re.compile(rb";base64,([A-Za-z0-9+/=]+)")
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight patients in two classes, with two broken files whose headers hold names too."""
    root = tmp_path_factory.mktemp("private")
    for number in range(8):
        fields = PLANTED | {"PatientID": f"ZXQVID{4711 + number}"}
        label = "ab"[number % 2]
        fake_series(root / label / f"scan{number}", (24, 24, 4), seed=number, fields=fields)
    colour = fake_series(root / "a" / "colour", (8, 8, 1), seed=20, fields=PLANTED)[0]
    one = pydicom.dcmread(colour)
    one.SamplesPerPixel = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.PhotometricInterpretation = one.Modality = "Zxqvcolour"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(colour, one)
    lying = fake_series(root / "b" / "lying", (8, 8, 1), seed=21, fields=PLANTED)[0]
    data = lying.read_bytes().replace(b"ISO_IR", b"Zxqvset").replace(b"LO", b"UN", 3)
    at = data.index(b"\x28\x00\x10\x00US")
    lying.write_bytes(data[:at] + b"\x28\x00\x10\x00DS\x0a\x00Zxqvrows^^" + data[at + 10 :])
    return root


@pytest.fixture(scope="module")
def secrets(folder):
    """Everything that must not turn up, as bytes."""
    found = {str(value).encode() for value in PLANTED.values()} | {b"zxqv", b"Zxqv", b"ZXQV"}
    for file in folder.rglob("*.dcm"):
        one = pydicom.dcmread(file, force=True, specific_tags=[*UIDS])
        found |= {str(one[name].value).encode() for name in UIDS if name in one}
    return sorted(found)


def search(data: bytes, secrets, where) -> None:
    lowered = data.lower()
    for secret in secrets:
        assert secret.lower() not in lowered, f"{secret!r} is in {where}"


def contents(path):
    """The bytes of a file, also as they are when unpacked."""
    data = path.read_bytes()
    # any four letters turn up in the base64 of a picture sooner or later: it is searched as it is when decoded
    yield EMBEDDED.sub(b"", data)
    for found in EMBEDDED.finditer(data):
        yield base64.b64decode(found[1], validate=True)
    if path.suffix == ".parquet":
        yield str(pq.read_table(path).to_pylist()).encode()
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield archive.read(name)
    if data[:2] == b"\x1f\x8b":
        yield zlib.decompress(data, 31)


def search_folder(folder, secrets):
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        search(str(file).encode(), secrets, "a file name")
        for data in contents(file):
            search(data, secrets, file)
    return len(files)


def test_samples_loaders_and_what_they_say(folder, secrets, caplog):
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        for loader in (VolumeLoader(folder), SliceLoader(folder)):
            assert len(loader.bad_files) >= 1
            search(pickle.dumps(loader), secrets, "a loader")
            search(repr(loader.bad_files).encode(), secrets, "reasons")
            for index in range(len(loader)):
                search(repr(loader.read(index).meta).encode(), secrets, "meta")
    search(caplog.text.encode(), secrets, "the log")
    search(" ".join(str(one.message) for one in warned).encode(), secrets, "warnings")
    search(repr(VolumeLoader.inspect(folder)).encode(), secrets, "inspect")


def test_groups_cannot_be_found_by_trying_ids_without_the_key(folder):
    """The same ID hashed by anyone else gives another group: the key is the user's own."""
    import hashlib

    groups = {volume.group for volume in find_volumes(folder).volumes}
    assert len(groups) == 8
    tried = {hashlib.blake2b(f"ZXQVID{4711 + n}".encode(), digest_size=8).hexdigest() for n in range(8)}
    assert not {f"patient-{one}" for one in tried} & groups


def test_everything_that_a_run_writes(folder, secrets, tmp_path, capfd):
    settings = ["data.loader=slices", "data.size=16", "method.patch_size=8", "method.embed_dim=16", "method.depth=1",
                "method.num_heads=2", "method.decoder_embed_dim=16", "method.decoder_depth=1",
                "method.decoder_num_heads=2"]  # fmt: skip
    run = mw.pretrain("mae", folder, run=tmp_path / "run", settings=settings, max_steps=2, precision="32", batch_size=4,
                      max_bad_fraction=0.5)  # fmt: skip
    mw.embed(run, folder, tmp_path / "embedding.parquet", device="cpu", max_bad=0.5)
    mw.evaluate(run, labels="label", protocols=["knn"], seeds=1, folds=2, baselines=["random-init"], device="cpu")
    printed = capfd.readouterr()
    search((printed.out + printed.err).encode(), secrets, "what was printed")
    assert search_folder(tmp_path, secrets) > 8


@pytest.mark.parametrize("command", ["inspect", "convert", "window", "slices"])
def test_commands(folder, secrets, tmp_path, capfd, command):
    first = str(folder / "a" / "scan0")
    arguments = {
        "inspect": ["inspect", str(folder)],
        "convert": ["medical", "convert", str(folder), str(tmp_path / "out.nii.gz")],
        "window": ["medical", "window", first, str(tmp_path / "out.nii.gz"), "--preset", "lung"],
        "slices": ["medical", "slices", first, str(tmp_path / "out")],
    }[command]
    code = command_line(arguments)
    printed = capfd.readouterr()
    assert code == 0, printed
    search((printed.out + printed.err).encode(), secrets, "the output")
    search_folder(tmp_path, secrets)


def test_the_search_finds_what_is_there(folder, secrets):
    """A test that cannot fail would be worth nothing."""
    file = next((folder / "a" / "scan0").glob("*.dcm"))
    with pytest.raises(AssertionError, match="is in"):
        search(file.read_bytes(), secrets, file)
    uid = generate_uid()
    with pytest.raises(AssertionError):
        search(np.frombuffer(uid.encode(), np.uint8).tobytes(), [uid.encode()], "an array")
