#pragma once

// Activations: two-dimensional, row-major, in a backend's memory. A row is one token of one
// sequence.

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "base/check.h"
#include "tensor/dtype.h"

namespace volley {

// A borrowed [rows, cols] matrix; consecutive rows lie `row_stride` elements apart.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;

  bool empty() const { return rows == 0 || cols == 0; }

  // Rows [first, first + count).
  TensorView row_range(int64_t first, int64_t count) const {
    CHECK_LE(first + count, rows);
    TensorView view = *this;
    view.data = static_cast<char*>(data) + first * row_stride * dtype_bytes(dtype);
    view.rows = count;
    return view;
  }

  // Columns [first, first + count) of every row.
  TensorView col_range(int64_t first, int64_t count) const {
    CHECK_LE(first + count, cols);
    TensorView view = *this;
    if (rows > 0) view.data = static_cast<char*>(data) + first * dtype_bytes(dtype);
    view.cols = count;
    return view;
  }

  template <class T>
  T* row(int64_t row_idx) const {
    return static_cast<T*>(data) + row_idx * row_stride;
  }
};

// Owns a matrix. The backend that allocated it supplies the deleter. Move-only.
class Tensor {
 public:
  Tensor() = default;
  Tensor(TensorView view, std::unique_ptr<void, std::function<void(void*)>> storage)
      : view_(view), storage_(std::move(storage)) {}

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  TensorView first_rows(int64_t count) const { return view_.row_range(0, count); }

 private:
  TensorView view_;
  std::unique_ptr<void, std::function<void(void*)>> storage_;
};

}  // namespace volley
