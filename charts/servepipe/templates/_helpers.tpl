{{/* The operator's name in its own namespace. */}}
{{- define "servepipe.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The operator's name among objects of the whole cluster or of other namespaces, where other installations may be. */}}
{{- define "servepipe.globalname" -}}
{{- printf "%s:%s" .Release.Namespace (include "servepipe.fullname" .) -}}
{{- end -}}

{{- define "servepipe.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "servepipe.fullname" .) -}}
{{- end -}}

{{- define "servepipe.labels" -}}
app.kubernetes.io/name: servepipe-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* By which the operator's pods are found. NetworkPolicies of pipelines let in who has the first of these labels. */}}
{{- define "servepipe.selector" -}}
app.kubernetes.io/name: servepipe-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "servepipe.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* `settings` as variables: steadySeconds is SERVEPIPE_STEADY_S. What is empty is left to the operator. */}}
{{- define "servepipe.settings" -}}
{{- range $name, $value := .Values.settings }}
{{- $short := regexReplaceAll "Seconds?$" $name "S" -}}
{{- if kindIs "slice" $value }}{{ $value = join "," $value }}{{ end }}
{{- if ne (toString $value) "" }}
- name: SERVEPIPE_{{ $short | snakecase | upper }}
  value: {{ toString $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Of the pod of `helm test`, which is none of the operator's. */}}
{{- define "servepipe.testSelector" -}}
app.kubernetes.io/name: servepipe-operator-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
