# Every kernel file with the flags it is compiled for.  The files that choose (src/cpu.c) get none.
set(RELAY_KERNEL_DIR ${PROJECT_SOURCE_DIR}/kernels)
set(RELAY_KERNEL_SOURCES
  ${RELAY_KERNEL_DIR}/ref/attend_ref.c
  ${RELAY_KERNEL_DIR}/ref/pack_ref.c
  ${RELAY_KERNEL_DIR}/ref/state_ref.c
)
# The contraction that the compiler may not do by itself is written out in the kernels (fma()).
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  include(${CMAKE_CURRENT_LIST_DIR}/x86/x86.cmake)
else()
  list(APPEND RELAY_KERNEL_SOURCES ${RELAY_KERNEL_DIR}/ref/peak_ref.c)
endif()
