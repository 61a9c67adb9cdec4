"""The environment variables that Jittor 1.3.11 reads when it starts: which ones count, and which ones are ignored.

Every flag of Jittor can be set by an environment variable of its name. Some abort at once (use_cuda=1 without a GPU),
some change results (auto_mixed_precision_level), and some have names that other programs use too (nthread).
"""

from __future__ import annotations

import os

from utils.runtime import processes

# Where things are, how they are compiled, what is logged and traced, and limits: no results depend on these.
TAKEN = """
JITTOR_HOME cache_name cc_path nvcc_path mpicc_path gdb_path addr2line_path python_config_path
mkl_include_path mkl_lib_path nccl_include_path nccl_lib_path
cutt_include_path cutt_lib_path CUTT_PATH cutlass_include_path cutlass_lib_path CUTLASS_PATH
cc_flags nvcc_flags kernel_flags cuda_arch enable_lto debug cuda_debug
conv_opt use_cub use_cutt use_cutlass use_nccl
log_v log_silent log_sync log_vprefix log_file
JT_SYNC trace_py_var trace_var_data trace_depth extra_gdb_cmd check_graph
cpu_mem_limit device_mem_limit use_parallel_op_compiler DISABLE_MULTIPROCESSING disable_lock
"""
# What is ignored, by what decides instead, or why.
IGNORED = {
    "--device decides": "use_cuda ASCEND_TOOLKIT_HOME",
    "CUDA_VISIBLE_DEVICES decides": "device_id",
    "--tf32 decides": "use_tensorcore",
    "mpirun decides": "use_mpi",
    "OMP_NUM_THREADS decides": "nthread",
    "it would change results": "auto_mixed_precision_level amp_reg auto_convert_64_to_32 no_grad th_mode use_mkl "
    "try_use_32bit_index exclude_pass gopt_disable no_fuse node_order compile_options DUMP_NAN_INPUT",
    "it would change how FILM computes": "lazy_execution sync_run use_threading exec_called reuse_array rewrite_op "
    "para_opt_level l1_cache_size enable_tuner jit_search_kernel jit_search_warmup jit_search_rerun "
    "use_nfef_allocator use_sfrl_allocator use_stat_allocator use_temp_allocator use_cuda_managed_allocator "
    "use_cuda_host_allocator sfrl_large_block_size_device stat_allocator_total_alloc_byte "
    "stat_allocator_total_alloc_call stat_allocator_total_free_byte stat_allocator_total_free_call",
    "it would stop the command or slow it down": "gdb_attach has_pybt SKEY log_op_hash profile_memory_enable "
    "profiler_enable profiler_warmup profiler_rerun profiler_record_peek profiler_record_shape profiler_hide_relay",
    "FILM finds it": "jittor_path cache_path python_path cc_type cuda_archs use_data_gz FIX_TORCH_ERROR use_auto_diff",
}


def ignore_others() -> str:
    """Remove what is ignored from the environment, and return a line about it; empty if there is nothing."""
    reasons = {name: reason for reason, names in IGNORED.items() for name in names.split()}
    if os.environ.get("use_mpi") == str(int(processes.by_mpirun())):
        del reasons["use_mpi"]  # what utils.runtime.processes sets, for example in the parent of this process
    found = [(name, os.environ.pop(name), reason) for name, reason in reasons.items() if name in os.environ]
    shown = ", ".join(f"{name}={value} ({reason})" for name, value, reason in found)
    return f"ignored in the environment: {shown}" if found else ""
