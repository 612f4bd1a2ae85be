# relay_x86(FILE FLAGS...): one kernel file and the instruction sets that it may use.
function(relay_x86 file)
  set_source_files_properties(${RELAY_KERNEL_DIR}/x86/${file} PROPERTIES COMPILE_OPTIONS "${ARGN}")
  set(RELAY_KERNEL_SOURCES ${RELAY_KERNEL_SOURCES} ${RELAY_KERNEL_DIR}/x86/${file} PARENT_SCOPE)
endfunction()
set(RELAY_AVX2_FLAGS -mavx2 -mfma -mf16c)
set(RELAY_AVX512_FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)

relay_x86(x86.c) # the ladder: no flags
relay_x86(rows_x86.c)
relay_x86(peak_x86.c)
foreach(dtype f32 f16 bf16)
  relay_x86(attend_${dtype}_avx2.c ${RELAY_AVX2_FLAGS})
  relay_x86(attend_${dtype}_avx512.c ${RELAY_AVX512_FLAGS})
endforeach()
relay_x86(attend_bf16_dot_avx512bf16.c ${RELAY_AVX512_FLAGS} -mavx512bf16)
relay_x86(pack_avx2.c ${RELAY_AVX2_FLAGS})
relay_x86(pack_avx512.c ${RELAY_AVX512_FLAGS})
relay_x86(state_avx2.c ${RELAY_AVX2_FLAGS})
relay_x86(state_avx512.c ${RELAY_AVX512_FLAGS})
relay_x86(peak_avx2.c ${RELAY_AVX2_FLAGS})
relay_x86(peak_avx512.c ${RELAY_AVX512_FLAGS})
relay_x86(peak_avx512bf16.c ${RELAY_AVX512_FLAGS} -mavx512bf16)

set(RELAY_AMX_FLAGS ${RELAY_AVX512_FLAGS} -mavx512bf16 -mamx-tile -mamx-bf16)
relay_x86(amx_permission.c) # asks the system: no flags
foreach(file attend_amx.c attend_few_amx.c amx_tiles.c amx_softmax.c amx_mask.c amx_gather.c amx_clean.c peak_amx.c)
  relay_x86(${file} ${RELAY_AMX_FLAGS})
endforeach()
