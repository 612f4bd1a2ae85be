# librelayattn_cuda: a second shared object, opened by the core at run time.  sm_80 and newer; Hopper
# by machine code of its own, whatever comes after by PTX.
set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 90-virtual)
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "RELAY_CUDA: no CUDA compiler (nvcc) was found; set CMAKE_CUDA_COMPILER or CUDACXX")
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

set(RELAY_CUDA_SOURCES
  attend_d64_cuda.cu attend_d96_cuda.cu attend_d128_cuda.cu attend_d192_cuda.cu attend_d256_cuda.cu
  merge_cuda.cu write_cuda.cu fuse_cuda.cu peak_cuda.cu ops_cuda.cu)
list(TRANSFORM RELAY_CUDA_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

# wgmma and the copy engine's maps: machine code for Hopper alone
add_library(relayattn_hopper OBJECT
  ${CMAKE_CURRENT_LIST_DIR}/hopper_d64_cuda.cu ${CMAKE_CURRENT_LIST_DIR}/hopper_d128_cuda.cu
  ${CMAKE_CURRENT_LIST_DIR}/merge_hopper_cuda.cu)
set_target_properties(relayattn_hopper PROPERTIES
  CUDA_ARCHITECTURES 90a-real CUDA_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)

add_library(relayattn_cuda MODULE ${RELAY_CUDA_SOURCES} $<TARGET_OBJECTS:relayattn_hopper>)
foreach(target relayattn_cuda relayattn_hopper)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
endforeach()
set_target_properties(relayattn_cuda PROPERTIES
  CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
install(TARGETS relayattn_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
