# Python and nanobind for qbits._C. nanobind is the Python package of that name, asked where its CMake files are.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module OPTIONAL_COMPONENTS Development.SABIModule)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE qbits_no_nanobind ERROR_QUIET)
if(qbits_no_nanobind)
  message(FATAL_ERROR "[bindings] nanobind: not found by ${Python_EXECUTABLE}; pip install 'nanobind>=3.1', "
                      "set Python_EXECUTABLE, or configure with -DQBITS_PYTHON=OFF")
endif()
find_package(nanobind 3.1 CONFIG REQUIRED)
