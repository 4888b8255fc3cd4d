// A linear map's products for CPUs: its outputs, and the gradients of its inputs and of its weights.

#include "native_strips.h"

namespace process_gen {
namespace {

// y_i[N, O_i] = x[N, I] w_i[I, O_i]; the weights may lie in strips, ``[O_i / 16, I, 16]``.
ffi::Error outputs(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs weights,
                   ffi::RemainingRets results) {
  const Matrix in = matrix(x);
  std::vector<Product> in_strips;
  std::vector<Target> plain;
  double products = 0.0;
  for (size_t i = 0; i < weights.size(); i++) {
    auto given = weights.get<Floats>(i);
    auto result = results.get<Floats>(i);
    if (given.has_error()) return given.error();
    if (result.has_error()) return result.error();
    const Matrix y = matrix(**result);
    if (given->dimensions().size() == 3) {
      in_strips.push_back({strips(*given), y.at, y.columns, false});
      products += double(in.rows) * in.columns * y.columns;
    } else {
      plain.push_back({matrix(*given).plain(), y.columns, y.at});
    }
  }
  if (!plain.empty()) multiply(pool, in.rows, in.columns, in.plain(), plain);
  if (in_strips.empty()) return ffi::Error::Success();
  in_blocks(pool, {in.rows}, products, [&](int, int first, int used, auto multiply) {
    std::vector<Product> here = in_strips;
    for (Product& p : here) p.y += size_t(first) * p.by_row;
    multiply(used, in.plain().to(first, 0), in.columns, here);
  });
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
