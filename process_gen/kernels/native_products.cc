// A linear map's products for CPUs: its outputs, and the gradients of its inputs and of its weights.

#include "native_few_rows.h"

namespace process_gen {
namespace {

// y_i[N, O_i] = x[N, I] w_i[I, O_i].
ffi::Error outputs(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs weights,
                   ffi::RemainingRets results) {
  const Matrix in = matrix(x);
  std::vector<Product> few;
  std::vector<Target> many;
  for (size_t i = 0; i < weights.size(); i++) {
    auto given = weights.get<Floats>(i);
    auto result = results.get<Floats>(i);
    if (given.has_error()) return given.error();
    if (result.has_error()) return result.error();
    const Matrix w = matrix(*given), y = matrix(**result);
    few.push_back({in.rows, in.columns, w.columns, in.at, w.at, y.at});
    many.push_back({w.plain(), w.columns, y.at});
  }
  if (in.rows <= kFewRows) {
    few_rows(pool, few);
  } else {
    multiply(pool, in.rows, in.columns, in.plain(), many);
  }
  return ffi::Error::Success();
}

// dx[N, I] = sum_i dy_i[N, O_i] w_i[I, O_i]^T; the gradients come first, the weights after.
ffi::Error input_gradient(ffi::ThreadPool pool, ffi::RemainingArgs given, Out result) {
  const Matrix dx = matrix(*result);
  const size_t maps = given.size() / 2;
  for (size_t i = 0; i < maps; i++) {
    auto d_out = given.get<Floats>(i), weights = given.get<Floats>(maps + i);
    if (d_out.has_error()) return d_out.error();
    if (weights.has_error()) return weights.error();
    const Matrix dy = matrix(*d_out), w = matrix(*weights);
    multiply(pool, dy.rows, dy.columns, dy.plain(), {{w.turned(), dx.columns, dx.at}}, i > 0);
  }
  return ffi::Error::Success();
}

// dw_i[I, O_i] = x[N, I]^T dy_i[N, O_i].
ffi::Error weight_gradients(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs d_outs,
                            ffi::RemainingRets results) {
  const Matrix in = matrix(x);
  std::vector<Target> targets;
  for (size_t i = 0; i < d_outs.size(); i++) {
    auto d_out = d_outs.get<Floats>(i);
    auto result = results.get<Floats>(i);
    if (d_out.has_error()) return d_out.error();
    if (result.has_error()) return result.error();
    const Matrix dy = matrix(*d_out);
    targets.push_back({dy.plain(), dy.columns, (*result)->typed_data()});
  }
  multiply(pool, in.columns, in.rows, in.turned(), targets);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace process_gen

using xla::ffi::Ffi;
using xla::ffi::ThreadPool;

XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_outputs, process_gen::outputs,
                              Ffi::Bind()
                                  .Ctx<ThreadPool>()
                                  .Arg<process_gen::Floats>()
                                  .RemainingArgs()
                                  .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    linear_input_gradient, process_gen::input_gradient,
    Ffi::Bind().Ctx<ThreadPool>().RemainingArgs().Ret<process_gen::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(linear_weight_gradients, process_gen::weight_gradients,
                              Ffi::Bind()
                                  .Ctx<ThreadPool>()
                                  .Arg<process_gen::Floats>()
                                  .RemainingArgs()
                                  .RemainingRets());
