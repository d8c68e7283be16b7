// Reads an image as training did, and prints the answer of a network as run.py does.

#pragma once

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef WITH_PNG
#include <png.h>
#endif
#ifdef WITH_JPEG
// jpeglib.h needs the types of stdio.h before it.
#include <jpeglib.h>
#include <jerror.h>
#endif

#include "preprocessing.h"

inline const char* image_path = "";  // The image that is read, for messages.

[[noreturn]] inline void fail(const std::string& reason) {
    std::fprintf(stderr, "%s: %s\n", image_path, reason.c_str());
    std::exit(1);
}

// An image with 3 bytes a pixel: red, green and blue.
struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> rgb;

    Image(std::int64_t width, std::int64_t height) {
        if (width < 1 || height < 1) fail("the image has no pixels");
        if (width > MAX_PIXELS / height) fail("the image has too many pixels");
        this->width = int(width);
        this->height = int(height);
        rgb.resize(std::size_t(3) * width * height);
    }
};

// Return an image turned and mirrored as an EXIF orientation, 1 to 8, says.
inline Image turned(const Image& image, int orientation) {
    if (orientation < 2 || orientation > 8) return image;
    const bool swaps = orientation >= 5;
    const bool flips_x = std::strchr("\2\3\7\10", orientation) != nullptr;
    const bool flips_y = std::strchr("\3\4\6\7", orientation) != nullptr;
    Image result = swaps ? Image(image.height, image.width) : Image(image.width, image.height);
    for (int y = 0; y < result.height; ++y)
        for (int x = 0; x < result.width; ++x) {
            int from_x = swaps ? y : x, from_y = swaps ? x : y;
            if (flips_x) from_x = image.width - 1 - from_x;
            if (flips_y) from_y = image.height - 1 - from_y;
            std::copy_n(&image.rgb[3 * (std::size_t(from_y) * image.width + from_x)], 3,
                        &result.rgb[3 * (std::size_t(y) * result.width + x)]);
        }
    return result;
}

// Return the orientation in EXIF data, which is a TIFF file; 1, that of an upright image, if it has
// none or is damaged.
inline int exif_orientation(const std::uint8_t* tiff, std::size_t size) {
    const auto number = [&](std::size_t at, int bytes) {
        std::uint32_t value = 0;
        for (int i = 0; i < bytes; ++i) {
            const std::size_t byte = at + (tiff[0] == 'I' ? bytes - 1 - i : i);
            value = value << 8 | (byte < size ? tiff[byte] : 0);
        }
        return value;
    };
    if (size < 8 || (std::memcmp(tiff, "II*\0", 4) && std::memcmp(tiff, "MM\0*", 4))) return 1;
    std::size_t at = number(4, 4);
    std::uint32_t entries = number(at, 2);
    for (at += 2; entries > 0; --entries, at += 12)
        if (number(at, 2) == 0x0112) return int(number(at + 8, 2));
    return 1;
}

inline Image read_ppm(std::FILE* file, bool is_grey) {
    const auto number = [&] {  // It takes the one byte behind the digits, too.
        int c = std::getc(file), value = 0;
        while (c == '#' || std::isspace(c)) {
            if (c == '#')
                while (c != '\n' && c != EOF) c = std::getc(file);
            c = std::getc(file);
        }
        for (; std::isdigit(c); c = std::getc(file))
            value = std::min(value * 10 + c - '0', 1 << 24);
        return value;
    };
    const int width = number(), height = number();
    if (number() != 255) fail("a PPM or PGM image with another maximum than 255");
    Image image(width, height);
    const std::size_t count = image.rgb.size() / (is_grey ? 3 : 1);
    if (std::fread(image.rgb.data(), 1, count, file) != count) fail("the file is truncated");
    if (is_grey)
        for (std::size_t i = count; i-- > 0;) std::fill_n(&image.rgb[3 * i], 3, image.rgb[i]);
    return image;
}

#ifdef WITH_PNG
inline Image read_png(std::FILE* file) {
    png_structp png = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, nullptr, [](png_structp, png_const_charp text) { fail(text); },
        [](png_structp, png_const_charp) {});
    png_infop info = png_create_info_struct(png);
    png_init_io(png, file);
    png_read_info(png, info);
    Image image(png_get_image_width(png, info), png_get_image_height(png, info));
    png_set_expand(png);    // Palettes, fewer than 8 bits, and transparent values.
    png_set_strip_16(png);  // Of 16 bits the upper 8 count.
    png_set_gray_to_rgb(png);
    png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    std::vector<std::uint8_t> rgba(std::size_t(4) * image.width * image.height);
    std::vector<png_bytep> rows;
    for (int y = 0; y < image.height; ++y) rows.push_back(&rgba[std::size_t(4) * image.width * y]);
    png_read_image(png, rows.data());
    png_read_end(png, info);
    for (std::size_t i = 0; i < image.rgb.size(); ++i) {
        const int alpha = rgba[i / 3 * 4 + 3], value = rgba[i / 3 * 4 + i % 3];
        const int behind = BACKGROUND[i % 3] * (255 - alpha);
        image.rgb[i] = std::uint8_t((value * alpha + behind + 127) / 255);
    }
    int orientation = 1;
#ifdef PNG_eXIf_SUPPORTED
    png_uint_32 size = 0;
    png_bytep exif = nullptr;
    if (png_get_eXIf_1(png, info, &size, &exif)) orientation = exif_orientation(exif, size);
#endif
    png_destroy_read_struct(&png, &info, nullptr);
    return turned(image, orientation);
}
#endif

#ifdef WITH_JPEG
inline Image read_jpeg(std::FILE* file) {
    jpeg_decompress_struct jpeg;
    jpeg_error_mgr errors;
    jpeg.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr info) {
        char text[JMSG_LENGTH_MAX];
        info->err->format_message(info, text);
        fail(text);
    };
    errors.emit_message = [](j_common_ptr info, int) {
        if (info->err->msg_code == JWRN_JPEG_EOF) fail("the file is truncated");
    };
    jpeg_create_decompress(&jpeg);
    jpeg_stdio_src(&jpeg, file);
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&jpeg, TRUE);
    int orientation = 1;
    for (auto marker = jpeg.marker_list; marker != nullptr; marker = marker->next)
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0", 6) == 0)
            orientation = exif_orientation(marker->data + 6, marker->data_length - 6);
    if (jpeg.num_components > 3) fail("a JPEG image of more than three colours");
    // A large image is decoded at a part of its size, as training did it.
    const unsigned side = JPEG_DRAFT * DECODED_SIZE;
    jpeg.scale_num = 1;
    for (jpeg.scale_denom = 8; jpeg.scale_denom > 1; jpeg.scale_denom /= 2)
        if (std::min(jpeg.image_width, jpeg.image_height) / side >= jpeg.scale_denom) break;
    jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg);
    Image image(jpeg.output_width, jpeg.output_height);
    while (jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row = &image.rgb[std::size_t(3) * image.width * jpeg.output_scanline];
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_decompress(&jpeg);
    jpeg_destroy_decompress(&jpeg);
    return turned(image, orientation);
}
#endif

inline Image read_image(const char* path) {
    image_path = path;
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) fail(std::strerror(errno));
    char start[3] = {};
    const std::size_t count = std::fread(start, 1, 2, file);
    const std::string kind(start, count);
    if (kind == "P5" || kind == "P6") {
        Image image = read_ppm(file, kind == "P5");
        std::fclose(file);
        return image;
    }
    std::rewind(file);
    Image (*read)(std::FILE*) = nullptr;
#ifdef WITH_PNG
    if (kind == "\x89P") read = read_png;
#endif
#ifdef WITH_JPEG
    if (kind == "\xff\xd8") read = read_jpeg;
#endif
    if (read == nullptr)
        fail("expected PPM, or JPEG or PNG if CMake had their libraries; convert the image");
    Image image = read(file);
    std::fclose(file);
    return image;
}

// Return a colour as a grey level.
template <typename Value>
std::uint8_t luma(const Value* colour) {
    return std::uint8_t((19595 * colour[0] + 38470 * colour[1] + 7471 * colour[2] + 0x8000) >> 16);
}

// Return an image whose rows are resized with bilinear interpolation and antialiasing, as Pillow
// does it, and which is then transposed, so that a second call resizes the columns.
//
// `span` pixels of a row, from `begin` on, become `count`.
template <typename Value>
std::vector<Value> resize_rows(const std::vector<Value>& pixels, int width, int height,
                               double begin, double span, int count) {
    // Pillow computes bytes with weights of 22 bits after the point.
    constexpr bool is_bytes = std::is_same_v<Value, std::uint8_t>;
    using Sum = std::conditional_t<is_bytes, std::int32_t, float>;
    constexpr double one = is_bytes ? 1 << 22 : 1;
    constexpr Sum half = is_bytes ? 1 << 21 : 0;
    const double scale = span / count, support = std::max(scale, 1.0);
    std::vector<Value> result(std::size_t(count) * height * CHANNELS);
    for (int i = 0; i < count; ++i) {
        const double centre = begin + (i + 0.5) * scale;
        const int first = std::max(int(centre - support + 0.5), 0);
        const int end = std::min(int(centre + support + 0.5), width);
        std::vector<double> triangle;
        double total = 0;
        for (int x = first; x < end; ++x) {
            const double distance = std::abs((x - centre + 0.5) * (1 / support));
            triangle.push_back(std::max(1 - distance, 0.0));
            total += triangle.back();
        }
        std::vector<Sum> weights;
        for (double weight : triangle)
            weights.push_back(Sum(weight / total * one + (is_bytes ? 0.5 : 0)));
        for (int y = 0; y < height; ++y)
            for (int c = 0; c < CHANNELS; ++c) {
                const Value* from = &pixels[(std::size_t(y) * width + first) * CHANNELS + c];
                Sum sum = half;
                for (std::size_t k = 0; k < weights.size(); ++k)
                    sum += from[k * CHANNELS] * weights[k];
                if constexpr (is_bytes) sum = std::clamp(sum >> 22, 0, 255);
                result[(std::size_t(i) * height + y) * CHANNELS + c] = Value(sum);
            }
    }
    return result;
}

// Return an oblong image in the centre of a square, between borders that have the background.
inline std::vector<std::uint8_t> with_border(const std::vector<std::uint8_t>& pixels, int width,
                                             int height) {
    const double longest = std::max(width, height);
    const int columns = std::max(1, int(std::nearbyint(width / longest * DECODED_SIZE)));
    const int rows = std::max(1, int(std::nearbyint(height / longest * DECODED_SIZE)));
    std::vector<std::uint8_t> inside = resize_rows(pixels, width, height, 0, width, columns);
    inside = resize_rows(inside, height, columns, 0, height, rows);
    const int left = int(std::nearbyint((DECODED_SIZE - columns) * 0.5));
    const int top = int(std::nearbyint((DECODED_SIZE - rows) * 0.5));
    std::vector<std::uint8_t> result(std::size_t(DECODED_SIZE) * DECODED_SIZE * CHANNELS);
    for (int y = 0; y < DECODED_SIZE; ++y)
        for (int x = 0; x < DECODED_SIZE; ++x)
            for (int c = 0; c < CHANNELS; ++c) {
                const int column = x - left, row = y - top;
                const bool is_inside = column >= 0 && column < columns && row >= 0 && row < rows;
                result[(std::size_t(y) * DECODED_SIZE + x) * CHANNELS + c] =
                    is_inside ? inside[(std::size_t(row) * columns + column) * CHANNELS + c]
                    : CHANNELS == 1 ? luma(BACKGROUND)
                                    : std::uint8_t(BACKGROUND[c]);
            }
    return result;
}

// Return an image file as the input of the network, height x width x channels.
inline std::vector<float> network_input(const char* path) {
    Image image = read_image(path);
    std::vector<std::uint8_t> pixels = std::move(image.rgb);
    if (CHANNELS == 1) {
        for (std::size_t i = 0; i < pixels.size() / 3; ++i) pixels[i] = luma(&pixels[3 * i]);
        pixels.resize(pixels.size() / 3);
    }
    if (IS_WHOLE_IMAGE && image.width != image.height) {
        pixels = with_border(pixels, image.width, image.height);
    } else if (image.width != DECODED_SIZE || image.height != DECODED_SIZE) {
        // The square in the centre is resized. Pillow 13 begins with the columns of some tall
        // images, so that some of their bytes differ by 1.
        const double side = std::min(image.width, image.height);
        pixels = resize_rows(pixels, image.width, image.height, (image.width - side) / 2, side,
                             DECODED_SIZE);
        pixels = resize_rows(pixels, image.height, DECODED_SIZE, (image.height - side) / 2, side,
                             DECODED_SIZE);
    }
    std::vector<float> values;
    for (std::size_t i = 0; i < pixels.size(); ++i)
        values.push_back((pixels[i] / 255.0f - MEAN[i % CHANNELS]) / STD[i % CHANNELS]);
    if (IMAGE_SIZE != DECODED_SIZE) {
        const int old = DECODED_SIZE;
        values = resize_rows(values, old, old, 0, old, IMAGE_SIZE);
        values = resize_rows(values, old, IMAGE_SIZE, 0, old, IMAGE_SIZE);
    }
    return values;
}

// Print the most probable classes, or "unsure", as run.py does.
inline void print_answer(const std::vector<float>& logits) {
    for (float value : logits)
        if (!std::isfinite(value)) fail("the network's answer has values that are not finite");
    const float largest = *std::max_element(logits.begin(), logits.end());
    std::vector<std::pair<double, int>> answers;
    double sum = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        answers.emplace_back(std::exp(double(logits[i]) - largest), int(i));
        sum += answers.back().first;
    }
    std::sort(answers.rbegin(), answers.rend());
    if (answers[0].first / sum < MIN_CONFIDENCE) {
        std::puts("unsure");
        return;
    }
    answers.resize(std::min<std::size_t>(answers.size(), 5));
    for (const auto& [value, position] : answers)
        std::printf("%5.1f%%  %s\n", 100 * (value / sum), CLASSES[position]);
}

// The program: MODEL IMAGE [--logits].
//
// `run` returns the logits that the network in a file gives for an image, height x width x
// channels.
inline int classify(
    int count, char** arguments,
    const std::function<std::vector<float>(const char*, std::vector<float>)>& run) {
    const bool wants_logits = count == 4 && std::strcmp(arguments[3], "--logits") == 0;
    if (count != 3 && !wants_logits) {
        std::fprintf(stderr, "usage: %s MODEL IMAGE [--logits]\n", arguments[0]);
        return 2;
    }
    std::vector<float> image = network_input(arguments[2]);
    try {
        const std::vector<float> logits = run(arguments[1], std::move(image));
        if (wants_logits)
            for (float value : logits) std::printf("%.9g\n", value);
        else
            print_answer(logits);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", arguments[1], error.what());
        return 1;
    }
    return 0;
}
