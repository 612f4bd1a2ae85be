# relay_x86(FILE FLAGS...): one kernel file and the instruction sets that it may use.
function(relay_x86 file)
  set_source_files_properties(${RELAY_KERNEL_DIR}/x86/${file} PROPERTIES COMPILE_OPTIONS "${ARGN}")
  set(RELAY_KERNEL_SOURCES ${RELAY_KERNEL_SOURCES} ${RELAY_KERNEL_DIR}/x86/${file} PARENT_SCOPE)
endfunction()
set(RELAY_AVX2_FLAGS -mavx2 -mfma -mf16c)
set(RELAY_AVX512_FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)

relay_x86(x86.c) # the ladder: no flags
