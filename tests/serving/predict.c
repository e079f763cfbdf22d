/* Runs requests on a SavedModel through TensorFlow's C API.
 *
 *   predict SAVED_MODEL PLAN
 *
 * The plan is a text of words: `feed OPERATION INDEX FILE`, `fetch OPERATION INDEX
 * FILE`, and `run` after each request. A file holds a tensor: int32 dtype, int32 rank,
 * int64 sizes, then the values; of strings, for each an int64 length and its bytes.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { kMost = 64, kName = 4096 };

static void Fail(const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static void Check(TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) Fail(what, TF_Message(status));
}

static void Read(FILE* file, void* to, size_t bytes) {
  if (bytes && fread(to, 1, bytes, file) != bytes) Fail("read", "file is too short");
}

static void Write(FILE* file, const void* from, size_t bytes) {
  if (bytes && fwrite(from, 1, bytes, file) != bytes) Fail("write", "no space");
}

static FILE* Open(const char* name, const char* mode) {
  FILE* file = fopen(name, mode);
  if (!file) Fail("open", name);
  return file;
}

static int64_t Count(const TF_Tensor* tensor) {
  int64_t count = 1;
  for (int axis = 0; axis < TF_NumDims(tensor); ++axis) count *= TF_Dim(tensor, axis);
  return count;
}

static TF_Tensor* ReadTensor(const char* name) {
  FILE* file = Open(name, "rb");
  int32_t dtype, rank;
  int64_t sizes[8], count = 1;
  Read(file, &dtype, sizeof dtype);
  Read(file, &rank, sizeof rank);
  Read(file, sizes, rank * sizeof *sizes);
  for (int axis = 0; axis < rank; ++axis) count *= sizes[axis];
  const size_t item =
      dtype == TF_STRING ? sizeof(TF_TString) : TF_DataTypeSize((TF_DataType)dtype);
  TF_Tensor* tensor =
      TF_AllocateTensor((TF_DataType)dtype, sizes, rank, count * item);
  if (dtype != TF_STRING) {
    Read(file, TF_TensorData(tensor), count * item);
  } else {
    TF_TString* texts = TF_TensorData(tensor);
    for (int64_t i = 0; i < count; ++i) {
      int64_t length;
      Read(file, &length, sizeof length);
      char* bytes = malloc(length + 1);
      Read(file, bytes, length);
      TF_StringInit(&texts[i]);
      TF_StringCopy(&texts[i], bytes, length);
      free(bytes);
    }
  }
  fclose(file);
  return tensor;
}

static void WriteTensor(const TF_Tensor* tensor, const char* name) {
  FILE* file = Open(name, "wb");
  const int32_t dtype = TF_TensorType(tensor), rank = TF_NumDims(tensor);
  Write(file, &dtype, sizeof dtype);
  Write(file, &rank, sizeof rank);
  for (int axis = 0; axis < rank; ++axis) {
    const int64_t size = TF_Dim(tensor, axis);
    Write(file, &size, sizeof size);
  }
  if (dtype != TF_STRING) {
    Write(file, TF_TensorData(tensor), TF_TensorByteSize(tensor));
  } else {
    const TF_TString* texts = TF_TensorData(tensor);
    for (int64_t i = 0; i < Count(tensor); ++i) {
      const int64_t length = TF_StringGetSize(&texts[i]);
      Write(file, &length, sizeof length);
      Write(file, TF_StringGetDataPointer(&texts[i]), length);
    }
  }
  if (fclose(file)) Fail("close", name);
}

int main(int argc, char** argv) {
  if (argc != 3) Fail("usage", "predict SAVED_MODEL PLAN");
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1,
                                                     graph, NULL, status);
  Check(status, "load");

  FILE* plan = Open(argv[2], "r");
  TF_Output feeds[kMost], fetches[kMost];
  TF_Tensor *given[kMost], *answers[kMost];
  static char files[kMost][kName];
  int fed = 0, fetched = 0, runs = 0;
  char word[16], operation[kName], file[kName];
  while (fscanf(plan, "%15s", word) == 1) {
    if (strcmp(word, "run") == 0) {
      TF_SessionRun(session, NULL, feeds, given, fed, fetches, answers, fetched, NULL,
                    0, NULL, status);
      Check(status, "run");
      for (int i = 0; i < fed; ++i) TF_DeleteTensor(given[i]);
      for (int i = 0; i < fetched; ++i) {
        WriteTensor(answers[i], files[i]);
        TF_DeleteTensor(answers[i]);
      }
      fed = fetched = 0;
      ++runs;
      continue;
    }
    int index;
    if (fscanf(plan, "%4095s %d %4095s", operation, &index, file) != 3)
      Fail("plan", "three words expected");
    if (fed == kMost || fetched == kMost) Fail("plan", "too many tensors");
    const TF_Output output = {TF_GraphOperationByName(graph, operation), index};
    if (!output.oper) Fail("no operation", operation);
    if (strcmp(word, "feed") == 0) {
      feeds[fed] = output;
      given[fed++] = ReadTensor(file);
    } else {
      strcpy(files[fetched], file);
      fetches[fetched++] = output;
    }
  }
  fclose(plan);
  TF_CloseSession(session, status);
  Check(status, "close");
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  printf("%d\n", runs);
  return 0;
}
