// Puts the table of keys into README.md, between its marks.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "client/config/key_table.h"

int main() {
  const char* workspace = std::getenv("BUILD_WORKSPACE_DIRECTORY");
  if (workspace == nullptr) {
    std::fputs(sherd::config::TableAsMarkdown().c_str(), stdout);
    return 0;
  }
  const std::string path = std::string(workspace) + "/client/config/README.md";
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  const std::string mark = "<!-- written by :key_table_doc -->\n";
  const std::string kept = text.str().substr(0, text.str().find(mark));
  std::ofstream out(path);
  out << kept << mark << sherd::config::TableAsMarkdown();
  return out.good() ? 0 : 1;
}
