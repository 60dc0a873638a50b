import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from configs.schema import PILLOW_PIXELS, DataConfig
from trainers.decode import Resize, UnreadableImage, decode_image, fit_pixels, open_header

ROWS, COLUMNS = np.mgrid[:24, :36]
RGB = np.stack([ROWS * 10, COLUMNS * 7, (ROWS + COLUMNS) * 4], axis=-1).astype(np.uint8)  # (24, 36, 3)
CORNER = (250, 10, 20)  # the colour of the stored top left corner in the orientation tests


def encoded(pixels: np.ndarray | Image.Image, file_format: str, **options: object) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def decoded(data: bytes, **options: object) -> np.ndarray:
    return decode_image(data, **{"size": 24, "channels": 3, **options}).pixels


def reason(data: bytes, **options: object) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data, **{"size": 8, "channels": 3, **options})
    return str(caught.value)


@pytest.mark.parametrize(
    ("file_format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_deflate"}, 0),
        ("BMP", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("JPEG", {"quality": 98, "subsampling": 0}, 6),
        ("JPEG", {"quality": 98, "subsampling": 0, "progressive": True}, 6),
    ],
)
def test_every_format_gives_its_pixels_back(file_format, options, tolerance):
    image = decode_image(encoded(RGB[:24, :24], file_format, **options), size=24, channels=3)
    assert image.pixels.dtype == np.uint8 and image.pixels.shape == (24, 24, 3)
    assert (image.width, image.height) == (24, 24)
    assert np.abs(image.pixels.astype(int) - RGB[:24, :24]).max() <= tolerance


def test_one_channel_is_the_luma_of_the_colours():
    pixels = decoded(encoded(RGB[:, :24], "PNG"), channels=1)
    luma = RGB[:, :24] @ np.array([0.299, 0.587, 0.114])
    assert pixels.shape == (24, 24, 1)
    assert np.abs(pixels[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_channels_asked_for(mode, channels):
    image = Image.new("RGB", (24, 24), "white").convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    pixels = decoded(data, channels=channels)
    assert pixels.shape == (24, 24, channels)
    assert (pixels >= 254).all()


def test_ycbcr_and_cmyk_jpegs_have_the_colours_of_the_original():
    flat = np.full((24, 24, 3), (200, 60, 40), dtype=np.uint8)
    assert np.abs(decoded(encoded(flat, "JPEG", quality=95)).astype(int) - flat).max() <= 4
    cmyk = encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decoded(cmyk).astype(int) - flat).max() <= 6


def test_one_bit_is_black_and_white_not_zero_and_one():
    bits = np.zeros((24, 24), dtype=bool)
    bits[:, 12:] = True
    assert set(np.unique(decoded(encoded(Image.fromarray(bits), "PNG")))) == {0, 255}


def test_alpha_is_composited_over_white():
    half = np.zeros((24, 24, 4), dtype=np.uint8)
    half[..., 3] = 51  # black, a fifth opaque
    assert set(np.unique(decoded(encoded(half, "PNG")))) == {204}
    grey = np.stack([np.zeros((24, 24)), np.full((24, 24), 51)], axis=-1).astype(np.uint8)
    assert set(np.unique(decoded(encoded(Image.fromarray(grey, "LA"), "PNG"), channels=1))) == {204}


def test_a_transparent_palette_entry_is_white_and_the_others_keep_their_colour():
    image = Image.new("P", (24, 24), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(0, (0, 0, 24, 12))
    assert decoded(encoded(image, "PNG"))[0, 0].tolist() == [10, 20, 30]
    pixels = decoded(encoded(image, "PNG", transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[-1, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_sixteen_bit_grey_is_scaled_by_the_declared_bits_and_never_clipped(file_format, bits):
    top = 2**bits - 1
    ramp = np.linspace(0, top, 24 * 24).round().astype(np.uint16).reshape(24, 24)
    pixels = decoded(encoded(ramp, file_format), grey_bits=bits, channels=1)[:, :, 0]
    assert np.array_equal(pixels, np.rint(ramp * 255.0 / top).astype(np.uint8))
    assert (pixels == 255).sum() <= 3  # Pillow's own conversion makes most of the ramp white


def test_grey_above_the_declared_bits_is_rejected_with_the_values():
    ramp = np.linspace(100, 5000, 64).astype(np.uint16).reshape(8, 8)
    text = reason(encoded(ramp, "PNG"), grey_bits=12)
    assert text == "grey values from 100 to 5000 leave the declared range 0..4095; data.grey_bits is 12"


def test_negative_grey_is_rejected():
    negative = encoded(Image.fromarray(np.full((8, 8), -3, dtype=np.int32)), "TIFF")
    assert "grey values from -3 to -3" in reason(negative)


def test_big_endian_and_white_is_zero_greys_come_out_right():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.rint(ramp * (255.0 / 65535)).astype(np.uint8)
    big_endian = Image.frombytes("I;16B", (8, 8), ramp.astype(">u2").tobytes())
    assert np.array_equal(decoded(encoded(big_endian, "TIFF"), size=8, channels=1)[:, :, 0], expected)
    inverted = encoded(ramp, "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decoded(inverted, size=8, channels=1)[:, :, 0], 255 - expected)


def test_float_pixels_are_rejected_with_advice():
    assert "save the image as 8-bit or 16-bit grey" in reason(encoded(np.ones((8, 8), dtype=np.float32), "TIFF"))


def sixteen_bit_colour_png(value: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + struct.pack(">3H", value, value, value) * 8) * 8
    header = struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_keeps_its_high_byte_and_is_refused_under_other_bits():
    assert set(np.unique(decoded(sixteen_bit_colour_png(0x8123), size=8))) == {0x81}
    assert "16-bit colour uses all 16 bits, but data.grey_bits is 12" in reason(
        sixteen_bit_colour_png(2000), grey_bits=12
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("large", [False, True])  # a large JPEG is decoded at a fraction of its size
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_the_size_is_the_upright_one(file_format, large, orientation):
    scale = 10 if large else 1
    pixels = np.zeros((20 * scale, 32 * scale, 3), dtype=np.uint8)
    pixels[: 10 * scale, : 16 * scale] = CORNER
    exif = Image.Exif()
    exif[274] = orientation
    image = decode_image(encoded(pixels, file_format, exif=exif), size=8, channels=3)
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    at = (0 if corner[0] == "t" else 7, 0 if corner[1] == "l" else 7)
    bright = image.pixels[..., 0] > 128
    assert bright[at] and bright.sum() == 16
    sides = (32 * scale, 20 * scale)
    assert (image.width, image.height) == (sides if orientation < 5 else sides[::-1])


def test_a_large_jpeg_is_within_two_levels_of_its_full_decode():
    smooth = Image.fromarray(RGB).resize((900, 600), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=92)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(decoded(data, size=64) - full).max() <= 2


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_does_not_reject_sound_pixels(file_format):
    data = encoded(
        RGB[:, :24],
        file_format,
        exif=b"Exif\x00\x00no TIFF header",
        **({} if file_format == "PNG" else {"quality": 95}),
    )
    assert decoded(data).shape == (24, 24, 3)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_whose_size_is_no_multiple_of_the_scale_is_not_shifted(resize, orientation):
    smooth = Image.fromarray(RGB).resize((505, 333), Image.Resampling.BICUBIC)  # a quarter is 126.25 x 83.25
    exif = Image.Exif()
    exif[274] = orientation
    image = decode_image(encoded(smooth, "JPEG", quality=95, exif=exif), size=64, channels=3, resize=resize)
    upright = encoded(ImageOps.exif_transpose(with_exif(smooth, exif)), "PNG")  # is never decoded at a part of its size
    exact = decode_image(upright, size=64, channels=3, resize=resize)
    assert (image.width, image.height) == (exact.width, exact.height)
    error = np.abs(image.pixels.astype(int) - exact.pixels)[2:-2, 2:-2]
    assert error.mean() < 0.75, "a picture at a quarter of its size that is taken as 127 x 84 has over 0.8"


def with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "PNG", exif=exif)))


def test_downscaling_is_antialiased():
    stripes = np.zeros((160, 160, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = decoded(encoded(stripes, "PNG"), size=16)
    assert np.abs(pixels[:, 2:-2].astype(int) - 127).max() <= 3  # picking single pixels would give 0 or 255


def test_resize_rules_differ_only_where_the_picture_is_not_square():
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, :16], wide[:, 16:32], wide[:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = encoded(wide, "PNG")
    squash, crop, pad = (decoded(data, size=16, resize=rule) for rule in ("squash", "crop", "pad"))
    assert squash[8, 1].argmax() == 0 and squash[8, 8].argmax() == 1 and squash[8, 14].argmax() == 2
    assert (crop == (0, 255, 0)).all()
    assert (pad[0] == 0).all() and (pad[-1] == 0).all() and pad[8, 1].argmax() == 0
    square = encoded(RGB[:, :24], "PNG")
    assert all(np.array_equal(decoded(square, resize=rule), RGB[:, :24]) for rule in ("squash", "crop", "pad"))


def test_a_one_pixel_line_can_be_padded():
    assert decoded(encoded(np.full((1, 500, 3), 9, dtype=np.uint8), "PNG"), size=8, resize="pad").shape == (8, 8, 3)


FRAMES = [Image.fromarray(np.roll(RGB, 5 * shift, axis=1)) for shift in range(3)]


@pytest.mark.parametrize("file_format", ["TIFF", "WEBP", "PNG"])
def test_several_frames_are_rejected_or_the_first_is_taken(file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(FRAMES[0], file_format, save_all=True, append_images=FRAMES[1:], **options)
    assert reason(data) == "3 frames or pages in one file; data.multi_frame: first takes the first"
    taken = decoded(data, multi_frame="first", resize="crop")
    assert np.array_equal(taken, decoded(encoded(FRAMES[0], "PNG"), resize="crop"))


def test_the_multi_picture_jpeg_of_a_phone_gives_its_main_picture():
    data = encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:], quality=95)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    main = encoded(FRAMES[0], "JPEG", quality=95)
    assert np.abs(decoded(data).astype(int) - decoded(main)).max() <= 4


def test_too_many_pixels_are_rejected_from_the_header():
    data = encoded(np.zeros((100, 200, 3), dtype=np.uint8), "PNG")
    text = reason(data[:60], max_pixels=19_999)  # only the header is there: nothing was decoded
    assert text == "200 x 100 is 20,000 pixels, more than data.max_pixels (19,999)"
    assert decode_image(data, size=8, channels=3, max_pixels=20_000).width == 200


def test_a_bomb_beyond_pillows_own_limit_is_rejected_too():
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    bomb = header + b"\0" * 100
    assert (
        reason(bomb, max_pixels=10**10) == "3,600,000,000 pixels, more than Pillow reads (178,956,970); save it smaller"
    )
    assert reason(bomb) == "3,600,000,000 pixels, more than data.max_pixels (90,000,000)"


def test_no_cap_can_be_set_above_the_one_of_pillow():
    assert 2 * Image.MAX_IMAGE_PIXELS == PILLOW_PIXELS
    with pytest.raises(ValueError, match="less than or equal to 178956970"):
        DataConfig(max_pixels=PILLOW_PIXELS + 1)


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("side", [1, 20])
def test_a_truncated_file_is_rejected(file_format, share, side):
    noise = np.random.default_rng(0).integers(0, 256, (24 * side, 36 * side, 3), dtype=np.uint8)
    data = encoded(noise, file_format)
    text = reason(data[: int(len(data) * share)])
    assert "cut short" in text or "damaged" in text
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"\n<!DOCTYPE html><html><body>403", "a web page (HTML), not an image; was the download refused?"),
        (b"\xef\xbb\xbf<svg xmlns=", "an SVG drawing, not an image"),
        (b"GIF89a" + b"\0" * 40, "a GIF file; JPEG, PNG, TIFF, WebP and BMP are read"),
        (b"SIMPLE  =                    T", "a FITS file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "an EPS (PostScript) file"),
        (b"\0" * 128 + b"DICM", "a DICOM file"),
        (b"\0\0\0\x18ftypheic\0\0", "a HEIC/AVIF/MP4 file"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"hello world", "not an image file (it starts with b'hello wo')"),
        (b"\xff\xd8\xff\xe0garbage", "the file is cut short: "),
        (b"\x89PNG garbage", "a PNG file that is damaged, cut short or of a kind that Pillow cannot read"),
    ],
)
def test_other_files_are_rejected_by_what_they_are(data, expected):
    assert reason(data).startswith(expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_are_rejected_or_decoded_but_never_crash():
    rng = np.random.default_rng(7)
    exif = Image.Exif()
    exif[274] = 6
    originals = [
        encoded(RGB, "JPEG", exif=exif),
        encoded(Image.fromarray(RGB).quantize(8), "PNG", transparency=1),
        encoded(RGB, "TIFF"),
        encoded(RGB, "WEBP", exif=exif),
        encoded(Image.fromarray(RGB).quantize(8), "BMP"),
        encoded(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]),
    ]
    rejected = 0
    for _ in range(60):
        for original in originals:
            data = bytearray(original)
            for position in rng.integers(0, min(len(data), 250), size=3):
                data[position] = rng.integers(256)
            try:
                assert decode_image(bytes(data), size=16, channels=3).pixels.shape == (16, 16, 3)
            except UnreadableImage:
                rejected += 1
    assert 30 < rejected < 350


def test_raw_pixels_follow_the_same_resize_rule():
    image = fit_pixels(RGB[:, :24, 0], size=24, channels=3)
    assert np.array_equal(image.pixels, np.repeat(RGB[:, :24, :1], 3, axis=2))
    assert fit_pixels(RGB[:, :, 0], size=8, channels=1, resize="crop").pixels.shape == (8, 8, 1)


def test_the_header_alone_tells_size_and_mode(tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded(RGB, "JPEG")[:700])  # the rest is not looked at
    assert open_header(path) == (36, 24, "RGB")
    path.write_bytes(encoded(RGB[:, :, 0], "PNG"))
    assert open_header(path) == (36, 24, "L")
    with pytest.raises(UnreadableImage, match="No such file"):
        open_header(tmp_path / "no.jpg")


@pytest.mark.parametrize("shape", [(512, 512), (700, 333), (1450, 330), (2100, 1900)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_shrinking_in_two_steps_stays_close_to_bicubic(shape: tuple[int, int], resize: Resize) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    picture = coarse.resize(shape, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    got = decode_image(stream.getvalue(), size=160, channels=3, resize=resize).pixels.astype(int)
    exact = {
        "squash": picture.resize((160, 160), Image.Resampling.BICUBIC),
        "crop": ImageOps.fit(picture, (160, 160), method=Image.Resampling.BICUBIC),
    }[resize]
    difference = np.abs(got - np.asarray(exact))
    assert difference.mean() < 1.2 and difference.max() <= 8
    shifted = np.abs(got - np.roll(np.asarray(exact), 1, axis=0).astype(int))
    assert shifted.mean() > 3 * difference.mean(), "a picture that is one pixel off would not be noticed"
