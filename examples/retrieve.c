/* Asks an export from C, with the TensorFlow C library and nothing else.
 *
 *   cc retrieve.c -o retrieve -I$INCLUDE -L$LIB -ltensorflow
 *   printf 'a query\nanother\n' | ./retrieve exported [SIGNATURE]
 *
 * One query a line; the answer is a line "query number <tab> score <tab> identifier" for each target,
 * best first. All queries are one batch. Scores are written so that they read back as the same float.
 *
 * The signature (default: retrieve) takes one input, strings [batch]. What its tensors are called in the
 * graph is read from the model's description, a protocol buffer of which only the few fields that are
 * needed are looked at.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>
#include <tensorflow/c/tf_tstring.h>

enum { LINE = 1 << 16, NAME = 256 };

static void fail(const char* what, const char* received) {
  fprintf(stderr, "retrieve: %s. Received: %s\n", what, received);
  exit(1);
}

static void check(TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

/* Protocol buffers, as they lie in memory. */

typedef struct {
  const uint8_t* at;
  const uint8_t* end;
} Bytes;

static uint64_t varint(Bytes* from) {
  uint64_t value = 0;
  for (int shift = 0; from->at < from->end && shift < 64; shift += 7) {
    uint8_t byte = *from->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) break;
  }
  return value;
}

/* The next field of a number that holds bytes; 0 where there are no more. */
static int next(Bytes* from, uint64_t number, Bytes* found) {
  while (from->at < from->end) {
    uint64_t tag = varint(from);
    uint64_t size = 0;
    switch (tag & 7) {
      case 0: varint(from); continue;
      case 1: size = 8; break;
      case 2: size = varint(from); break;
      case 5: size = 4; break;
      default: return 0;
    }
    if (size > (uint64_t)(from->end - from->at)) return 0;
    found->at = from->at;
    found->end = from->at += size;
    if (tag >> 3 == number && (tag & 7) == 2) return 1;
  }
  return 0;
}

/* The value of a key in a map from strings; with key NULL, of its only entry. */
static int entry(Bytes map, uint64_t number, const char* key, Bytes* value) {
  Bytes each, name;
  while (next(&map, number, &each)) {
    Bytes rest = each;
    if (!next(&rest, 1, &name)) continue;
    size_t length = name.end - name.at;
    if (key && (length != strlen(key) || memcmp(name.at, key, length))) continue;
    rest = each;
    return next(&rest, 2, value);
  }
  return 0;
}

/* Where a tensor of a signature is: TensorInfo.name is "operation:output". */
static TF_Output tensor(TF_Graph* graph, Bytes signature, uint64_t side, const char* key) {
  Bytes info, name;
  if (!entry(signature, side, key, &info) || !next(&info, 1, &name))
    fail("The signature lacks a tensor", key ? key : "no input");
  char operation[NAME] = {0};
  size_t length = name.end - name.at;
  if (length >= NAME) fail("A name is too long", "more than 255 characters");
  memcpy(operation, name.at, length);
  char* colon = strrchr(operation, ':');
  TF_Output output = {NULL, colon ? atoi(colon + 1) : 0};
  if (colon) *colon = 0;
  output.oper = TF_GraphOperationByName(graph, operation);
  if (!output.oper) fail("The graph lacks an operation", operation);
  return output;
}

/* Lines of standard input as a tensor of strings. */
static TF_Tensor* read_queries(int64_t* number) {
  char* line = malloc(LINE);
  TF_TString* texts = NULL;
  int64_t count = 0, room = 0;
  while (fgets(line, LINE, stdin)) {
    size_t length = strcspn(line, "\r\n");
    if (count == room) texts = realloc(texts, (room = 2 * room + 16) * sizeof *texts);
    TF_TString_Init(&texts[count]);
    TF_TString_Copy(&texts[count++], line, length);
  }
  free(line);
  TF_Tensor* queries = TF_AllocateTensor(TF_STRING, &count, 1, count * sizeof *texts);
  memcpy(TF_TensorData(queries), texts, count * sizeof *texts);
  free(texts);
  *number = count;
  return queries;
}

int main(int count, char** arguments) {
  if (count < 2 || count > 3) fail("Usage: retrieve FOLDER [SIGNATURE]", "other arguments");
  const char* name = count == 3 ? arguments[2] : "retrieve";
  const char* tags[] = {"serve"};
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Buffer* described = TF_NewBuffer();
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, arguments[1], tags, 1, graph,
                                                     described, status);
  check(status, "The export cannot be loaded");

  /* MetaGraphDef.signature_def is field 5; SignatureDef has inputs in field 1, outputs in 2. */
  Bytes model = {described->data, (const uint8_t*)described->data + described->length};
  Bytes signature;
  if (!entry(model, 5, name, &signature)) fail("The export has no such signature", name);
  TF_Output input = tensor(graph, signature, 1, NULL);
  TF_Output outputs[] = {tensor(graph, signature, 2, "scores"),
                         tensor(graph, signature, 2, "identifiers")};

  int64_t batch;
  TF_Tensor* queries = read_queries(&batch);
  TF_Tensor* found[2];
  TF_SessionRun(session, NULL, &input, &queries, 1, outputs, found, 2, NULL, 0, NULL, status);
  check(status, "The queries cannot be answered");

  const float* scores = TF_TensorData(found[0]);
  int64_t k = TF_Dim(found[0], 1);
  for (int64_t at = 0; at < batch * k; ++at) {
    printf("%lld\t%.9g\t", (long long)(at / k), scores[at]);
    if (TF_TensorType(found[1]) == TF_STRING) {
      const TF_TString* text = (const TF_TString*)TF_TensorData(found[1]) + at;
      printf("%.*s\n", (int)TF_TString_GetSize(text), TF_TString_GetDataPointer(text));
    } else {
      printf("%lld\n", (long long)((const int64_t*)TF_TensorData(found[1]))[at]);
    }
  }

  TF_DeleteTensor(found[0]);
  TF_DeleteTensor(found[1]);
  TF_DeleteTensor(queries);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteBuffer(described);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
